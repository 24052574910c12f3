"""``python -m benchmarks.pictures.train_two``: a base that draws two heads of one prompt, each as it is asked for.

Goes on from the base that composes (``train_composed``), with its text encoder: three of four steps show two heads side
by side ("a blue face with ears and smiling red face with halo", the left one first). What stands where is decided
while there is hardly anything but noise, where an error of the noise weighs next to nothing; so half of the times are
drawn from the noisier half and count more (``train_unet.denoising``, ``early``). In the end it lies in ``two/models``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gcfg.training.randomness import seed_of

from . import composed
from .command import begun
from .loop import Plan, Stage, averaged
from .train_composed import Mixed, prepared, write
from .train_unet import denoising

SEED = 21
PLAN = Plan(steps=2200, rate=8e-4, warmup=100, decay=0.4, average=0.998)
JOIN = " and "
SINGLE_EVERY, ARTWORK = 4, 0.15
"""Every fourth step shows single heads; the share of the artwork as it is."""

KEPT_APART = tuple(frozenset(pair) for pair in (("blue", "green"), ("red", "yellow"), ("violet", "orange"),
                                                ("pink", "turquoise"), ("blue", "blue")))
"""Colours that are never shown side by side, for measuring."""


@dataclass(frozen=True)
class Two(Mixed):
    """Two heads side by side; every ``SINGLE_EVERY`` steps single ones.

    Attributes:
        colours: of each picture; other words for what is no composed face.
    """

    colours: list[str]

    def draw(self, count: int, stage: str, step: int) -> tuple[Tensor, Tensor]:
        dice = random.Random(seed_of(SEED, stage, step))
        if step % SINGLE_EVERY == 0:
            index = [self._one(dice) for _ in range(count)]
            latents, said = self.latents["single"][index], [self.captions[i](dice) for i in index]
        else:
            pairs = [self._pair(dice) for _ in range(count // 2)]
            left, right = (list(side) for side in zip(*pairs, strict=True))
            latents = torch.cat([self.latents["left"][left], self.latents["right"][right]], 3)
            said = [JOIN.join(self.captions[i](dice) for i in pair) for pair in pairs]
        return latents, self.read([text if dice.random() < 0.9 else "" for text in said])

    def _pair(self, dice: random.Random) -> tuple[int, int]:
        while True:
            pair = self._one(dice, ARTWORK), self._one(dice, ARTWORK)
            if frozenset(self.colours[i] for i in pair) not in KEPT_APART:
                return pair


def main() -> None:
    settings = begun(__doc__)
    family, mixed = prepared(settings.work)
    family.load_state_dict(averaged(settings.work / "composed"), strict=False)
    stage = Stage(settings.work / "two", family, PLAN)
    stage.run(denoising(family.unet, paired(mixed, settings.work), "two", early=True), settings.minutes)
    print(write(settings.work, "two", family.text.tokens, mixed.tokenize))


def paired(mixed: Mixed, work: Path) -> Two:
    """What is shown, side by side."""
    colours = [*[""] * mixed.artwork, *(each.kind[0] for each in composed.load(work)[1])]
    return Two(**vars(mixed), colours=colours)


if __name__ == "__main__":
    main()
