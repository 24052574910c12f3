"""CLIF's first stage on the small base: an image encoder for its text encoder, and words tuned against it.

CLIP has both halves from one training; the base's text encoder has learned with the UNet, so its other half is made
here first, by contrast with composed pictures whole, in parts and mixed. Then the new words are tuned as Tune Concept
Words does, by the same views, captions and loss.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcfg.training.data import words
from gcfg.training.losses.contrastive import equal, info_nce, info_nce_each
from gcfg.training.randomness import seed_of

from ..pictures import composed
from ..pictures.loop import Plan, Stage, averaged
from ..pictures.train_words import image_encoder
from ..pictures.words import WIDTH
from .narrow import Family

SEED = 20
PLAN = Plan(steps=350, rate=2e-3, decay=0.6)
BATCH, ROWS, VIEWS = 48, 2, 16
TUNED_STEPS, TUNED_RATE = 150, 1e-2
MASK = torch.ones(64, 64, 1)


class Tower(nn.Module):
    """The other half of a CLIP whose text encoder is given."""

    def __init__(self):
        super().__init__()
        self.image, self.project = image_encoder(), nn.Linear(WIDTH, WIDTH, bias=False)
        self.temperature = nn.Parameter(torch.tensor(math.log(20.0)))

    def see(self, views: Tensor) -> Tensor:
        """Views (B, 224, 224, 3) in 0 .. 1 -> features (B, 64)."""
        return self.image(F.interpolate(views.movedim(3, 1), (32, 32), mode="area") * 2 - 1)

    @property
    def scale(self) -> float:
        return float(self.temperature.clamp(max=4.0).exp())


def tower(family: Family, work: Path) -> Tower:
    """The trained one; trained first where it is not."""
    torch.manual_seed(SEED)
    made = Tower()
    Stage(work / "tower", made, PLAN).run(contrast(made, family, work))
    made.load_state_dict(averaged(work / "tower"))
    return made.train(False).requires_grad_(False)


def contrast(made: Tower, family: Family, work: Path):
    """The loss of step i: a third whole views, a third regions, a third mixes of two."""
    pictures, shown = composed.load(work)
    pictures = pictures.movedim(1, 3)

    def loss_of(step: int) -> Tensor:
        dice = random.Random(seed_of(SEED, step))
        views, texts = [], []
        for k in range(BATCH):
            first, second = dice.randrange(len(shown)), dice.randrange(len(shown))
            view = (words.whole, words.region, None)[k % 3]
            if view is None:
                views.append(words.mix([("", pictures[i], MASK) for i in (first, second)], SEED, step, k))
                texts.append(" and ".join(shown[i].caption(dice) for i in (first, second)))
            else:
                views.append(view(pictures[first], MASK, SEED, step, k))
                texts.append(shown[first].caption(dice))
        _, meanings = family.read(texts)
        return info_nce(made.see(torch.stack(views)), made.project(meanings), made.temperature.clamp(max=4.0).exp(),
                        equal(texts))

    return loss_of


def tuned(family: Family, made: Tower, subjects: Sequence[Tensor], noun: str, seed: int) -> list[Tensor]:
    """A word of two rows (2, 64) for each subject's pictures (N, 3, 64, 64), from the noun's row on."""
    pictures = [[(str(k), picture.movedim(0, 2), MASK) for k, picture in enumerate(each)] for each in subjects]
    views, shown = zip(*words.views(pictures, VIEWS, seed), strict=True)
    with torch.no_grad():
        seen = made.see(torch.stack(views))
    rows = untuned(family, len(subjects), noun)
    optimizer = torch.optim.AdamW([row.requires_grad_() for row in rows], TUNED_RATE, weight_decay=0.0)
    for step in range(TUNED_STEPS):
        source = torch.Generator().manual_seed(seed_of(SEED, seed, step) % 2**63)
        index = torch.randint(len(seen), (32,), generator=source)
        texts = words.captions([shown[i] for i in index], torch.rand(len(index), generator=source))
        same = equal([tuple(sorted(shown[i])) for i in index])
        loss = info_nce_each(seen[index], made.project(family.read(texts, rows)[1]), made.scale, same).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [row.detach() for row in rows]


def untuned(family: Family, count: int, noun: str) -> list[Tensor]:
    """Words of two rows as the noun's."""
    return [family.row(noun).repeat(ROWS, 1) for _ in range(count)]


@torch.no_grad()
def apart(family: Family, rows: Sequence[Tensor]) -> float:
    """The cosine of two words' meanings."""
    meanings = family.read([f"a photo of a <{k}>" for k in range(2)], rows)[1]
    return float(F.cosine_similarity(meanings[:1], meanings[1:]))
