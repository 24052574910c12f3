"""CLIF's first stage on the small base: the other half of a CLIP for its text encoder, and words tuned against it.

CLIP has both halves from one training. The base's text encoder has learned with the UNet, so what stands in for CLIP's
image encoder is a small one trained here against it, as it is, by contrast with composed pictures whole, in parts and
mixed. Then the words are tuned by the views, captions and loss of Tune Concept Words (``gcfg.training``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcfg.training.data import words
from gcfg.training.losses.contrastive import equal, info_nce, info_nce_each
from gcfg.training.randomness import generator, seed_of

from ..pictures import composed
from ..pictures.judge import halved
from ..pictures.loop import Plan, Stage, frozen
from ..pictures.words import WIDTH
from .narrow import Family

SEED = 20
PLAN = Plan(steps=900, rate=2e-3, decay=0.6)
BATCH, SIDE = 48, 64
ROWS, VIEWS = 2, 16
"""Rows of a word, and its views of each kind, as in Tune Concept Words."""
TUNED_BATCH, TUNED_STEPS, TUNED_RATE = 32, 200, 1e-2
ALL = torch.ones(SIDE, SIDE, 1)
"""The mask of a composed picture."""


class Tower(nn.Module):
    """The other half of a CLIP whose text encoder is given."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(halved(3, 24), halved(24, 48), halved(48, 64), halved(64, 64), nn.Flatten(),
                                   nn.Linear(64 * 16, WIDTH))
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.3))

    def see(self, views: Tensor) -> Tensor:
        """Views (B, 224, 224, 3) in 0 .. 1 -> features (B, 64)."""
        return self.image(F.interpolate(views.movedim(3, 1), (SIDE, SIDE), mode="area") * 2 - 1)

    @property
    def scale(self) -> Tensor:
        """Of similarities, at most CLIP's."""
        return self.temperature.clamp(max=math.log(100.0)).exp()


def tower(family: Family, work: Path, folder: Path) -> Tower:
    """The one of this base, kept in a folder; trained first, or to its end, where it is not."""
    torch.manual_seed(SEED)
    made = Tower()
    Stage(folder, made, PLAN).run(contrast(made, family, work))
    return frozen(made, folder)


def contrast(made: Tower, family: Family, work: Path) -> Callable[[int], Tensor]:
    """The loss of step i: whole views, regions, and mixes of two, a third each."""
    pictures, shown = composed.load(work)
    pictures = pictures.movedim(1, 3)

    def loss_of(step: int) -> Tensor:
        dice = random.Random(seed_of(SEED, "tower", step))
        views, texts = [], []
        for k in range(BATCH):
            pair = [dice.randrange(len(shown)) for _ in range(2)]
            if k % 3 == 2:
                views.append(words.mix([("", pictures[i], ALL) for i in pair], SEED, step, k))
            else:
                views.append((words.whole, words.region)[k % 3](pictures[pair[0]], ALL, SEED, step, k))
                del pair[1]
            texts.append(" and ".join(shown[i].caption(dice) for i in pair))
        meanings = family.read(texts)[1]
        return info_nce(made.see(torch.stack(views)), made.project(meanings), made.scale, equal(texts))

    return loss_of


def untuned(family: Family, count: int, noun: str) -> list[Tensor]:
    """Words (2, 64) that are the noun's row twice."""
    return [family.row(noun).repeat(ROWS, 1) for _ in range(count)]


def tuned(family: Family, made: Tower, subjects: Sequence[Tensor], noun: str, seed: int, mixes: bool = True,
          steps: int = TUNED_STEPS) -> list[Tensor]:
    """The same words after CLIF's first stage on each subject's pictures (N, 3, 64, 64), white around them.

    ``mixes``: of two subjects are among the views.
    """
    pictures = [[(str(k), picture.movedim(0, 2), mask(picture)) for k, picture in enumerate(each)]
                for each in subjects]
    drawn = (view for view in words.views(pictures, VIEWS, seed) if mixes or len(view[1]) == 1)
    views, shown = zip(*drawn, strict=True)
    with torch.no_grad():
        seen = torch.cat([made.see(torch.stack(part)) for part in (views[i:i + 64] for i in range(0, len(views), 64))])
    rows = [row.requires_grad_() for row in untuned(family, len(subjects), noun)]
    optimizer = torch.optim.AdamW(rows, TUNED_RATE, weight_decay=0.0)
    for step in range(steps):
        source = generator(SEED, "words", seed, step)
        index = torch.randint(len(seen), (TUNED_BATCH,), generator=source).tolist()
        named = [shown[i] for i in index]
        texts = words.captions(named, torch.rand(len(named), generator=source))
        same = equal([tuple(sorted(each)) for each in named])
        loss = info_nce_each(seen[index], made.project(family.read(texts, rows)[1]), made.scale, same).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [row.detach() for row in rows]


def scattered(rows: Sequence[Tensor], moved: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Words as far from ``rows`` as ``moved`` are, in directions that say nothing of the subjects."""
    found = []
    for k, (row, other) in enumerate(zip(rows, moved, strict=True)):
        way = torch.randn(row.shape, generator=generator(SEED, "scattered", seed, k))
        found.append(row + way * (other - row).norm() / way.norm())
    return found


def mask(picture: Tensor) -> Tensor:
    """(64, 64, 1), 1 where a picture (3, 64, 64) is not white."""
    return (picture.amin(0) < 0.98).float()[..., None]


@torch.no_grad()
def cosine(family: Family, rows: Sequence[Tensor]) -> float:
    """The largest cosine of the meanings of two words."""
    meanings = F.normalize(family.read([f"a photo of a <{k}>" for k in range(len(rows))], rows)[1], dim=1)
    return float((meanings @ meanings.T).fill_diagonal_(-1).max())
