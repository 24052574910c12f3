"""A page that shows what is trained on: pictures as they are cut, by size, and which files were skipped and why."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from . import pictures
from .dataset import Latent, Latents, Source

WIDTH, ROW, LINE, GAP = 1024, 128, 16, 4
SHOWN, LISTED = 48, 24
"""How many pictures are shown, and how many skipped files are listed."""


def contact_sheet(source: Source, latents: Latents) -> np.ndarray:
    """The page, (H, W, 3) uint8: for each size how many pictures have it and some of them, then what was skipped."""
    sizes = by_size(latents.found)
    blocks, titles = [], []
    for members in sizes.values():
        shown = _loaded(source, members, max(1, SHOWN // len(sizes)))
        size = f"{shown[0].width} x {shown[0].height}" if shown else "size"
        titles.append(f"{size}: {len(members)} pictures")
        blocks.append(_rows(shown))
    skipped = latents.report(LISTED).splitlines()
    height = sum((len(rows) * (ROW + GAP)) + LINE + GAP for rows in blocks) + LINE * len(skipped) + GAP
    page = Image.new("RGB", (WIDTH, height), "white")
    draw, top = ImageDraw.Draw(page), 0
    for title, rows in zip(titles, blocks, strict=True):
        draw.text((GAP, top + 2), title, fill="black")
        top += LINE + GAP
        for row in rows:
            left = 0
            for picture in row:
                page.paste(picture, (left, top))
                left += picture.width + GAP
            top += ROW + GAP
    for line in skipped:
        draw.text((GAP, top + 2), line, fill="black")
        top += LINE
    return np.array(page)


def by_size(latents: Sequence[Latent]) -> dict[tuple[int, int], list[Latent]]:
    """Pictures by the size of their latents, the most frequent size first."""
    sizes: dict[tuple[int, int], list[Latent]] = {}
    for latent in latents:
        sizes.setdefault(latent.shape[1:], []).append(latent)
    return dict(sorted(sizes.items(), key=lambda item: -len(item[1])))


def _loaded(source: Source, members: Sequence[Latent], most: int) -> list[Image.Image]:
    """Some pictures, evenly chosen, as they are cut."""
    found = []
    for latent in members[::-(-len(members) // most)]:
        with contextlib.suppress(pictures.BadPicture):  # it has gone since it was encoded
            pixels = pictures.load(Path(source.folder).expanduser() / latent.file,
                                   latent.resolution or source.resolution, source.square)
            found.append(Image.fromarray((pixels * 255.0).round().byte().numpy()))
    return found


def _rows(shown: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """Pictures of one height in rows as wide as the page."""
    rows, left = [[]], 0
    for picture in shown:
        picture = picture.resize((max(1, round(picture.width * ROW / picture.height)), ROW), Image.Resampling.LANCZOS)
        if left + picture.width > WIDTH and rows[-1]:
            rows, left = [*rows, []], 0
        rows[-1].append(picture)
        left += picture.width + GAP
    return rows
