"""Other packs whose nodes some shipped workflows use: who they are in the registry, and where checkouts of them lie."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Pack(NamedTuple):
    """A pack of somebody else.

    Attributes:
        folder: its repository's name, that of its checkout too.
        cnr_id: its id in the registry, by which a ComfyUI offers to install it.
        version: the one that its workflows were run with.
        begins: what the ids of its nodes begin with.
    """

    folder: str
    cnr_id: str
    version: str
    begins: str


PACKS = (Pack("ComfyUI_IPAdapter_plus", "comfyui_ipadapter_plus", "2.0.0", "IPAdapter"),
         Pack("ComfyUI-AnimateDiff-Evolved", "comfyui-animatediff-evolved", "1.5.7", "ADE_"))


def pack_of(kind: str) -> Pack | None:
    """The other pack that a node is of; None for the host's and for our own."""
    return next((pack for pack in PACKS if kind.startswith(pack.begins)), None)


def needed(kinds: Iterable[str]) -> list[Pack]:
    """The other packs that nodes are of."""
    found = {pack_of(kind) for kind in kinds}
    return [pack for pack in PACKS if pack in found]


def checkout(pack: Pack) -> Path | None:
    """The folder of a pack in ``GCFG_OTHER_PACKS``, where that names a folder with checkouts that has it."""
    named = os.environ.get("GCFG_OTHER_PACKS")
    path = Path(named).expanduser().resolve() / pack.folder if named else None
    return path if path and path.is_dir() else None
