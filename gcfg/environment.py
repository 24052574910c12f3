"""What is read from the environment: in one place, so that one look shows that nothing else is."""

from __future__ import annotations

import os


def comfyui_path() -> str:
    """The folder of ComfyUI that COMFYUI_PATH names, or nothing."""
    return os.getenv("COMFYUI_PATH", "")


def processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.getenv("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.getenv("LOCAL_RANK", "0"))
