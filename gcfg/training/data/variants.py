"""A few pictures of one thing as many samples: scaled, placed, masked, captioned (arXiv 2405.17532, 2212.04488).

The official code draws a new variant every step and encodes it. Here a fixed number of seeded variants is encoded once,
so that a run costs no encoding, and goes on to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..randomness import generator
from . import pictures
from .dataset import Encode, Latent, store

CELL = 8
"""Pixels along each side of a latent's cell."""
SCALED = 0.66
"""How many variants are scaled down and placed on a grey canvas."""
SMALL, LARGE = ("a far away ", "very small "), ("zoomed in ", "close up ")
"""What a caption says of pictures that are scaled far down, and up."""
PREFIXES = ("", *SMALL, *LARGE)
"""All that may stand before a caption."""
FEWEST, MOST = 2, 100


@dataclass(frozen=True)
class Subject:
    """Pictures of one thing.

    Attributes:
        folder: of the pictures.
        masks: folder with a mask a picture under the same name, white where the thing is; empty for none.
        resolution: side of the square variants in pixels.
        augment: scale and place the pictures; otherwise they are only mirrored.
        flip: mirror half of the variants.
        count: variants in all.
        seed: of the variants.
    """

    folder: str
    masks: str = ""
    resolution: int = 512
    augment: bool = True
    flip: bool = True
    count: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Variant(Latent):
    """One variant: its latents, the mask of cells that count (see ``mask``), what stands before its caption."""

    prefix: str = ""

    def mask(self) -> Tensor:
        """(1, h, w) in [0, 1]."""
        return torch.from_numpy(np.load(f"{self.path}.mask.npy", allow_pickle=False))


def load(subject: Subject) -> list[tuple[str, Tensor, Tensor]]:
    """The pictures: name, pixels (S, S, 3) in [0, 1], mask (S, S, 1) in [0, 1].

    Raises:
        ValueError: too few or too many pictures, one that cannot be used, or a mask that does not belong to it.
    """
    root = Path(subject.folder).expanduser()
    files = [f for f in pictures.files(subject.folder) if f.suffix.lower() in pictures.ENDINGS]
    if not FEWEST <= len(files) <= MOST:
        raise ValueError(f"'{subject.folder}' holds {len(files)} picture{'s'[:len(files) != 1]}, but a subject needs "
                         f"{FEWEST} to {MOST}; 3 to 5 that differ in everything but the thing itself are best.")
    found = []
    for file in files:
        try:
            pixels = pictures.load(file, subject.resolution, square=True)
        except pictures.BadPicture as error:
            raise ValueError(f"{file.name}: {error}; with so few pictures every one counts, so replace or remove it."
                             ) from error
        mask = _mask(file, Path(subject.masks).expanduser(), subject.resolution) if subject.masks.strip() else None
        found.append((file.relative_to(root).as_posix(), pixels, torch.ones_like(pixels[..., :1]) if mask is None
                      else mask))
    return found


def _mask(picture: Path, folder: Path, resolution: int) -> Tensor:
    """The mask of a picture, cut as the picture is."""
    files = sorted(f for f in folder.glob("*") if f.stem == picture.stem and f.suffix.lower() in pictures.ENDINGS)
    if not files:
        raise ValueError(f"there is no mask for {picture.name} in '{folder}'; give every picture one of the same name, "
                         "or no folder of masks.")
    return pictures.load_mask(files[0], picture, resolution, square=True)


def variant(pixels: Tensor, mask: Tensor, subject: Subject, number: int) -> tuple[Tensor, Tensor, str]:
    """One seeded variant of a picture: pixels (S, S, 3), mask (1, S / 8, S / 8), what stands before its caption."""
    source, size = generator(subject.seed, "variant", number), len(pixels)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=source))
    if subject.flip and uniform(0.0, 1.0) < 0.5:
        pixels, mask = pixels.flip(1), mask.flip(1)
    if not subject.augment:
        return pixels, _cells(mask), ""
    if uniform(0.0, 1.0) >= SCALED:
        side = round(uniform(1.2, 1.4) * size)
        top, left = (round(uniform(0.0, side - size)) for _ in range(2))
        cut = (slice(top, top + size), slice(left, left + size))
        return _resized(pixels, side)[cut], _cells(_resized(mask, side)[cut]), LARGE[round(uniform(0.0, 1.0))]
    side = round(uniform(min(size, max(size / 3.0, 5.0 * CELL)), size))
    top, left = (round(uniform(0.0, size - side)) for _ in range(2))
    canvas, cells = torch.full_like(pixels, 0.5), torch.zeros(1, size // CELL, size // CELL)
    canvas[top:top + side, left:left + side] = _resized(pixels, side)
    placed = torch.zeros_like(mask)
    placed[top:top + side, left:left + side] = _resized(mask, side)
    rows, columns = (slice(start // CELL + 1, (start + side) // CELL - 1) for start in (top, left))
    cells[:, rows, columns] = _cells(placed)[:, rows, columns]
    if side == size:
        cells = _cells(placed)
    return canvas, cells, SMALL[round(uniform(0.0, 1.0))] if side < 0.6 * size else ""


def encode(subject: Subject, folder: str | Path, autoencoder: str, encoder: Encode,
           progress: Callable[[int, int], None] = lambda done, total: None) -> list[Variant]:
    """All variants of a subject, encoded once and kept on disk.

    Args:
        folder: where latents are kept; one autoencoder and one set of pictures get a folder of their own.
        autoencoder: a text that identifies it.
        encoder: the autoencoder.
        progress: called with (variants done, variants in all), may raise to stop.
    """
    shown = load(subject)
    digest = hashlib.sha256(repr((autoencoder, subject)).encode())
    for name, pixels, mask in shown:
        digest.update(name.encode() + pixels.numpy().tobytes() + mask.numpy().tobytes())
    place = Path(folder) / f"subject_{digest.hexdigest()[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(subject.count):
        name, pixels, mask = shown[number % len(shown)]
        path = place / f"{number:04}.npy"
        if not path.with_suffix(".json").exists():
            canvas, cells, prefix = variant(pixels, mask, subject, number)
            latents = encoder(canvas[None]).to("cpu", torch.float16)
            if not torch.isfinite(latents).all():
                raise ValueError(f"the autoencoder gives values that are not finite for {name}; replace the picture.")
            store(path, latents.numpy())
            store(Path(f"{path}.mask.npy"), cells.numpy())
            path.with_suffix(".json").write_text(json.dumps({"shape": list(latents.shape[1:]), "prefix": prefix}))
        stated = json.loads(path.with_suffix(".json").read_text())
        found.append(Variant(name, str(path), tuple(stated["shape"]), stated["prefix"]))
        progress(number + 1, subject.count)
    return found


def names(variants: Sequence[Variant]) -> list[str]:
    """The pictures that the variants were made of."""
    return list(dict.fromkeys(v.file for v in variants))


def _cells(mask: Tensor) -> Tensor:
    """A mask of pixels (S, S, 1) as one of latent cells, (1, S / 8, S / 8)."""
    return F.avg_pool2d(mask.movedim(-1, 0)[None], CELL)[0]


def _resized(image: Tensor, side: int) -> Tensor:
    """(S, S, C) -> (side, side, C)."""
    return F.interpolate(image.movedim(-1, 0)[None], (side, side), mode="bilinear", antialias=True)[0].movedim(0, -1)
