"""What every command that trains with ComfyUI's tokenizer begins with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from gcfg import comfyui

from . import data


def begun(doc: str, stages: Sequence[str] = ()) -> argparse.Namespace:
    """The settings of a command; one thread, ComfyUI importable.

    Args:
        stages: of which one is to be named, if any.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if stages:
        parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--comfyui", default="", help="its tokenizer is used; found by itself where it can be")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after these, to go on at the next call")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    comfyui.start(comfyui.find(settings.comfyui), cpu=True)
    return settings
