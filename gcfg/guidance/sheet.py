"""A grid of pictures as one, with a label for each row and column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .trace_plot import BACKGROUND, INK


def sheet(images: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Images (R * C, H, W, 3), row by row, 0 to 1, as one labelled picture (1, H', W', 3)."""
    cells = (images[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
    height, width = cells.shape[1:3]
    font = ImageFont.load_default(max(12, height // 11))
    margin, gap = 2 * font.size, max(2, height // 64)
    whole = Image.new("RGB", (margin + len(columns) * (width + gap), margin + len(rows) * (height + gap)), BACKGROUND)
    for c, text in enumerate(columns):
        whole.paste(_label(text, width, margin, font), (margin + c * (width + gap), 0))
    for r, text in enumerate(rows):
        whole.paste(_label(text, height, margin, font).rotate(90, expand=True), (0, margin + r * (height + gap)))
        for c in range(len(columns)):
            cell = Image.fromarray(cells[r * len(columns) + c])
            whole.paste(cell, (margin + c * (width + gap), margin + r * (height + gap)))
    return torch.from_numpy(np.asarray(whole).astype(np.float32) / 255).unsqueeze(0)


def _label(text: str, width: int, height: int, font) -> Image.Image:
    label = Image.new("RGB", (width, height), BACKGROUND)
    ImageDraw.Draw(label).text((width / 2, height / 2), text, fill=INK, font=font, anchor="mm")
    return label
