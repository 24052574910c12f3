"""Import plumbing for every test: this tree's ``gcfg`` and ``harness``, without the pack's root on ``sys.path``.

``python -m pytest`` puts the working directory on the path, where the pack's folder ``nodes`` would shadow the host's
module ``nodes``. The packages that tests import are therefore loaded by location.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The models here are tiny: threads cost more than they bring, and on a busy machine a hundred times more. Set before
# torch is imported; the servers that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def _load_harness():
    folder = ROOT / "tools" / "harness"
    spec = importlib.util.spec_from_file_location(
        "harness", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module
    spec.loader.exec_module(module)


_load_harness()

from harness.find import load_package  # noqa: E402

if (ROOT / "gcfg" / "__init__.py").is_file():
    load_package("gcfg", ROOT / "gcfg")
