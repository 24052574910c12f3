"""Wide pictures of two heads side by side, for a base that two subjects in one picture are measured with.

A pair is two pictures (64, 64) joined at a white border, so its latents are those of the left and of the right picture,
each encoded with white beside it. The caption names the left one first.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gcfg.training.randomness import seed_of

from . import captions
from .labels import Row
from .vae import Encoder

SEED = 15
JOINS = ("and", "and", "next to")
"""Words between two captions. The text encoder knows the first only; what it does not know divides them as well."""

FROM, EVERY = 3120, 4
"""Every fourth step shows pairs, from this step on: after single heads are drawn well."""


def at(step: int) -> bool:
    """Whether a step shows pairs."""
    return step >= FROM and step % EVERY == EVERY - 1


@dataclass(frozen=True)
class Pairs:
    """Wide examples, drawn from (seed, step).

    Attributes:
        left, right: (N, 4, 8, 8), the second half flipped pictures of the first.
        rows: of the first half.
        read: texts -> features (texts, 77, 64).
    """

    left: Tensor
    right: Tensor
    rows: list[Row]
    read: Callable[[list[str]], Tensor]

    @classmethod
    def of(cls, pictures: Tensor, rows: list[Row], encoder: Encoder, read: Callable[[list[str]], Tensor]) -> Pairs:
        """Of pictures (N, 3, 64, 64) and their rows."""
        return cls(*beside(encoder, torch.cat([pictures, pictures.flip(3)])), rows, read)

    def draw(self, count: int, *place: object) -> tuple[Tensor, Tensor]:
        """Latents (count, 4, 8, 16) and features of one batch."""
        dice = random.Random(seed_of(SEED, "pairs", *place))
        drawn = [self._pair(dice) for _ in range(count)]
        index = torch.tensor([[i + len(self.rows) * dice.randrange(2) for i in pair] for pair, _ in drawn])
        return (torch.cat([self.left[index[:, 0]], self.right[index[:, 1]]], 3),
                self.read([text for _, text in drawn]).float())

    def _pair(self, dice: random.Random) -> tuple[tuple[int, int], str]:
        """Two pictures of other labels, mostly of one style, and what is said of them."""
        first = dice.randrange(len(self.rows))
        same = dice.random() < 0.7
        fits = [i for i, row in enumerate(self.rows) if row.label != self.rows[first].label
                and (not same or row.style == self.rows[first].style)]
        pair = (first, dice.choice(fits))
        said = captions.with_style if dice.random() < 0.6 else _label
        text = f" {dice.choice(JOINS)} ".join(said(self.rows[i]) for i in pair)
        return pair, "" if dice.random() < 0.1 else text


def beside(encoder: Encoder, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 8, 8) of pictures (N, 3, 64, 64) as the left and as the right part of a wide one, white beside."""
    width, left, right = pictures.shape[3] // 8, [], []
    with torch.no_grad():
        for part in pictures.split(64):
            empty = torch.ones_like(part)
            left.append(encoder(torch.cat([part, empty], 3))[..., :width])
            right.append(encoder(torch.cat([empty, part], 3))[..., width:])
    return torch.cat(left), torch.cat(right)


def _label(row: Row) -> str:
    return row.label
