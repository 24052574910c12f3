"""A finished picture as the last live preview of its node."""

from __future__ import annotations

import torch
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

LARGEST = 2048
"""Longer side in pixels up to which a finished picture is sent as it is."""


def picture_of(images: Tensor) -> Image.Image:
    """Images (B, H, W, 3), 0 to 1, below one another."""
    column = torch.cat(list(images[..., :3]), dim=0)
    return Image.fromarray((column.clamp(0.0, 1.0) * 255.0).round().to("cpu", torch.uint8).numpy())


def show_result(bar: ProgressBar, picture: Image.Image) -> None:
    """End a progress bar with what was made: frontends go on showing a node's last preview in place of its result."""
    bar.update_absolute(bar.total, bar.total, ("JPEG", picture, min(LARGEST, max(picture.size))))
