"""A host inside this process: its modules importable, the pack loaded beside it."""

import sys
from pathlib import Path

from ..find import PACK, load_package


def start(host: Path, cpu: bool = True):
    """Make the host's modules importable, with the device chosen before any of them looks at it.

    Returns the pack as the package ``gcfg_pack``.
    """
    sys.path.insert(0, str(host))
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
    import utils.extra_config  # noqa: F401  (before nodes: another package named utils must not come first)

    return load_package("gcfg_pack", PACK)
