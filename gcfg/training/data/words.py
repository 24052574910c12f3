"""What CLIF's first stage shows its words: whole views, regions, and mixes of several subjects (arXiv 2405.06914).

The paper cuts pictures along over-segmented masks. With masks (of SAM, or painted) the parts here are cut from inside
them; without, they are seeded crops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..randomness import generator
from ..settings import Settings
from .dataset import Latent, store

TEMPLATES = ("a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "a photo of the {}",
             "a close up of {}", "a bright photo of the {}", "a picture of {}", "a good photo of the {}",
             "a depiction of a {}", "an image of {}")
"""Captions, as of textual inversion (arXiv 2208.01618)."""
SIDE = 224
"""Pixels along each side of what CLIP sees."""
GROUND = 0.5
"""Grey under whatever is pasted."""
PARTS = (0.3, 0.7)
"""Side of a region against that of its picture."""

Picture = tuple[str, Tensor, Tensor]
"""Name, pixels (S, S, 3), mask (S, S, 1)."""


@dataclass(frozen=True)
class WordSettings(Settings):
    """CLIF's first stage; see ``Settings`` for the rest.

    Attributes:
        names: of the new words, separated by commas, in the order of the subjects.
        nouns: what each subject is, in one common word each, from whose rows they start.
        views: whole views of a subject, regions of it, and mixes of each pair of subjects.
        folders, mask_folders: of the subjects, separated by commas; of the command line, as are
        vision, clip_file: files of CLIP-L's vision model and of its full text encoder, and
        models: the folder whose ``embeddings`` get the files; empty for ComfyUI's own.
        learning_rate: the paper's.
    """

    run_name: str = "words"
    target_steps: int = 1000
    learning_rate: float = 1e-4
    batch: int = 32
    ema: bool = False
    save_every: int = 250
    preview_every: int = 0
    held_out: int = 0
    held_out_every: int = 0
    weight_decay: float = 0.0
    names: str = ""
    nouns: str = ""
    views: int = 16
    folders: str = ""
    mask_folders: str = ""
    vision: str = ""
    clip_file: str = ""
    models: str = ""

    FREE: ClassVar[set[str]] = Settings.FREE | {"folders", "mask_folders", "vision", "clip_file", "models"}
    PATHS: ClassVar[tuple[str, ...]] = (*Settings.PATHS, "folders", "mask_folders", "vision", "clip_file", "models")


@dataclass(frozen=True)
class View(Latent):
    """One view: CLIP's features of it on disk, (1, C, 1, 1), and whose it is: one subject, or two in caption order."""

    shown: tuple[int, ...] = ()


def views(subjects: Sequence[Sequence[Picture]], count: int, seed: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Pictures (224, 224, 3) and whose they are: ``count`` whole views and regions a subject, mixes a pair."""
    for number, pictures in enumerate(subjects):
        for k in range(count):
            _, pixels, mask = pictures[k % len(pictures)]
            yield whole(pixels, mask, seed, number, k), (number,)
            yield region(pixels, mask, seed, number, k), (number,)
    for a in range(len(subjects)):
        for b in range(a + 1, len(subjects)):
            for k in range(count):
                pair = (a, b) if k % 2 else (b, a)
                yield mix([subjects[n][k % len(subjects[n])] for n in pair], seed, *pair, k), pair


def whole(pixels: Tensor, mask: Tensor, *place: object) -> Tensor:
    """The subject as a whole: now and then mirrored, on grey outside its mask, scaled to 0.6 to 1 of the view."""
    source = generator("whole", *place)
    mirrored, outside, scale, x, y = torch.rand(5, generator=source).tolist()
    shown = pixels * mask + GROUND * (1.0 - mask) if outside < 0.5 else pixels
    return _pasted([(shown.flip(1) if mirrored < 0.5 else shown, 0.6 + 0.4 * scale, x, y)])


def region(pixels: Tensor, mask: Tensor, *place: object) -> Tensor:
    """A part of the subject, cut where its mask is fullest among eight seeded squares."""
    source = generator("region", *place)
    size = len(pixels)
    side = round((PARTS[0] + (PARTS[1] - PARTS[0]) * float(torch.rand((), generator=source))) * size)
    corners = (torch.rand(8, 2, generator=source) * (size - side)).round().int().tolist()
    parts = [(slice(top, top + side), slice(left, left + side)) for top, left in corners]
    best = parts[0] if bool(mask.min() == mask.max()) else max(parts, key=lambda part: float(mask[part].mean()))
    return _resized(pixels[best] * mask[best] + GROUND * (1.0 - mask[best]), SIDE)


def mix(pictures: Sequence[Picture], *place: object) -> Tensor:
    """Two subjects on one canvas, side by side in the order of the caption."""
    source = generator("mix", *place)
    pasted = []
    for k, (_, pixels, mask) in enumerate(pictures):
        scale, y = torch.rand(2, generator=source).tolist()
        pasted.append((pixels * mask + GROUND * (1.0 - mask), 0.4 + 0.1 * scale, float(k), y))
    return _pasted(pasted)


def captions(shown: Sequence[tuple[int, ...]], level: Tensor) -> list[str]:
    """A caption a view, with ``<k>`` for the word of subject k; ``level`` (B,) in [0, 1) chooses the template."""
    chosen = [TEMPLATES[int(x * len(TEMPLATES))] for x in level.tolist()]
    named = [" and ".join(f"<{k}>" for k in names) for names in shown]
    return [template.format(words) for template, words in zip(chosen, named, strict=True)]


def encode(subjects: Sequence[Sequence[Picture]], count: int, seed: int, folder: str | Path, encoder_id: str,
           encoder: Callable[[Tensor], Tensor], progress: Callable[[int, int], None]) -> list[View]:
    """The views with CLIP's features of them, computed once and kept on disk.

    Args:
        encoder_id: a text that identifies the image encoder.
        encoder: (1, 224, 224, 3) -> (1, C).
    """
    digest = hashlib.sha256(repr((encoder_id, count, seed)).encode())
    for pictures in subjects:
        for name, pixels, mask in pictures:
            digest.update(name.encode() + pixels.numpy().tobytes() + mask.numpy().tobytes())
    place = Path(folder) / f"words_{digest.hexdigest()[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    total = 2 * count * len(subjects) + count * len(subjects) * (len(subjects) - 1) // 2
    found = []
    for number, (picture, shown) in enumerate(views(subjects, count, seed)):
        path = place / f"{number:05}.npy"
        if not path.exists():
            store(path, encoder(picture[None]).float().cpu().reshape(1, -1, 1, 1).numpy())
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape[1:]
        found.append(View(" and ".join(map(str, shown)), str(path), shape, shown))
        progress(number + 1, total)
    return found


def _pasted(parts: Sequence[tuple[Tensor, float, float, float]]) -> Tensor:
    """Pictures on a grey canvas: (pixels, side against the canvas, x, y from 0 to 1)."""
    canvas = torch.full((SIDE, SIDE, 3), GROUND)
    for pixels, scale, x, y in parts:
        side = round(scale * SIDE)
        top, left = (round(place * (SIDE - side)) for place in (y, x))
        canvas[top:top + side, left:left + side] = _resized(pixels, side)
    return canvas


def _resized(image: Tensor, side: int) -> Tensor:
    return F.interpolate(image.movedim(-1, 0)[None], (side, side), mode="bilinear", antialias=True)[0].movedim(0, -1)
