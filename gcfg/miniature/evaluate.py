"""What a method gives: pictures for requested colours, and how close and how obedient they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance import UNCONDITIONAL, Recipe
from .metrics import COLOUR, LOOK, SHAPE, Classifier, answers_of, features_of, frechet_distance, moments
from .model import caption_of
from .pictures import RING, SIZE, VIOLET, concept_attributes, draw
from .recipes import CAPTION, CLASS
from .sampling import Model, sample_in_batches

SEEN, UNSEEN = "seen", "unseen"
"""Requests: the concept's own colours as often as they occur, or violet."""
PROMPTS = {"colour": (0, 1, 0), "class and colour": (1, 1, 0), "caption": (1, 1, 1)}
"""Ways to write the control prompt: which of shape, colour and place it names."""


@dataclass(frozen=True)
class Score:
    """Frechet distance to the concept (drawn in the requested colours), and shares of the samples.

    Attributes:
        colour: the requested colour came out.
        look: it is a ring with the concept's look.
        both: both at once.
    """

    distance: float
    colour: float
    look: float
    both: float


@dataclass(frozen=True)
class Reference:
    """The classifier, the moments of real pictures by kind of request, and the distances real against real."""

    classifier: Classifier
    moments: Mapping[str, tuple[Tensor, Tensor]]
    floor: Mapping[str, float]


def requests(count: int, kind: str, generator: torch.Generator) -> Tensor:
    """Attributes (count, 3) to ask for."""
    return concept_attributes(count, generator, VIOLET if kind == UNSEEN else None)


def captions(attributes: Tensor, prompt: str) -> dict[str, Tensor]:
    """Conditionings for attributes (N, 3): the caption in one of the ways of ``PROMPTS``, the null text, the class."""
    caption = caption_of(attributes) * torch.tensor(PROMPTS[prompt])
    return {UNCONDITIONAL: torch.zeros(3, dtype=torch.long), CAPTION: caption, CLASS: torch.tensor([1 + RING, 0, 0])}


def reference(classifier: Classifier, count: int, samples: int) -> Reference:
    """Real concept pictures as the goal, and the floor: as many real pictures as there will be samples."""
    generator = torch.Generator().manual_seed(40_000)
    real = {kind: features_of(classifier, draw(requests(count, kind, generator), generator, concept=True))
            for kind in (SEEN, UNSEEN)}
    again = {kind: features_of(classifier, draw(requests(samples, kind, generator), generator, concept=True))
             for kind in (SEEN, UNSEEN)}
    goal = {kind: moments(f) for kind, f in real.items()}
    return Reference(classifier, goal, {kind: frechet_distance(moments(f), goal[kind]) for kind, f in again.items()})


def pictures_for(models: Mapping[str, Model], recipe: Recipe, attributes: Tensor, prompt: str,
                 seed: int) -> Tensor:
    """Pictures (N, 3, 16, 16) for attributes (N, 3); a seed gives all methods the same noise."""
    noise = torch.randn((len(attributes), 3, SIZE, SIZE), generator=torch.Generator().manual_seed(50_000 + seed))
    return sample_in_batches(models, recipe, captions(attributes, prompt), noise).clamp(-1.0, 1.0)


def score(pictures: Tensor, attributes: Tensor, kind: str, goal: Reference) -> Score:
    """Score pictures (N, 3, 16, 16) that were asked for by attributes (N, 3)."""
    answers = answers_of(goal.classifier, pictures)
    colour = answers[:, COLOUR] == attributes[:, 1]
    look = (answers[:, LOOK] == 1) & (answers[:, SHAPE] == RING)
    distance = frechet_distance(moments(features_of(goal.classifier, pictures)), goal.moments[kind])
    return Score(distance, *(float(hit.float().mean()) for hit in (colour, look, colour & look)))
