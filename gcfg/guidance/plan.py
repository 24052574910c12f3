"""What one step must evaluate: guidances that count at this noise level, and each prediction they need, once."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

from .recipe import Guidance, Prediction, Recipe
from .schedule import Progress


@dataclass(frozen=True)
class Term:
    """A guidance that counts at this noise level, with its index in the recipe and its scale here."""

    index: int
    guidance: Guidance
    scale: float


@dataclass(frozen=True)
class Plan:
    """The terms of one step.

    Attributes:
        terms: the guidances that count.
        predictions: what the terms need, without duplicates, in the order of the recipe.
        baseline: the recipe's baseline prediction.
        baseline_cancels: the coefficients of the baseline sum to zero, so that it need not be evaluated for the sum
            (as classifier-free guidance at scale 1 needs no unconditional prediction).
    """

    terms: tuple[Term, ...]
    predictions: tuple[Prediction, ...]
    baseline: Prediction
    baseline_cancels: bool

    @property
    def all_predictions(self) -> tuple[Prediction, ...]:
        """Everything the combined prediction needs, the baseline first unless it cancels."""
        first = () if self.baseline_cancels else (self.baseline,)
        return tuple(dict.fromkeys((*first, *self.predictions)))


def plan(recipe: Recipe, sigma: float, progress: Progress, *, added: bool = False,
         absent: Container[Prediction] = ()) -> Plan:
    """Plan one evaluation at a noise level: drop what has no effect, list what is left to predict.

    Args:
        added: the guidances are added to something other than the baseline, which then never cancels.
        absent: predictions that do not exist at this noise level; guidances that would use them have no effect.
    """
    terms = tuple(Term(i, g, scale) for i, g in enumerate(recipe.guidances)
                  if g.prediction != g.reference and not any(p in absent for p in g.uses)
                  and (scale := scale_at(g, sigma, progress)) != 0.0)
    baseline = recipe.baseline
    weight = sum(t.scale * ((t.guidance.reference == baseline) - (t.guidance.prediction == baseline)) for t in terms)
    cancels = not added and all(t.guidance.is_linear for t in terms) and math.isclose(weight, 1.0)
    needed: dict[Prediction, None] = {}
    for term in terms:
        g = term.guidance
        uses = [*g.uses, *([baseline] if g.shaping.needs_baseline else [])]
        needed.update(dict.fromkeys(p for p in uses if not (cancels and p == baseline)))
    return Plan(terms, tuple(needed), baseline, cancels)


def scale_at(guidance: Guidance, sigma: float, progress: Progress) -> float:
    """The scale of a guidance at a noise level: 0 outside its window, else scale times schedule."""
    if guidance.scale == 0.0 or not progress.within(sigma, guidance.start, guidance.end):
        return 0.0
    schedule = guidance.schedule
    return guidance.scale * (schedule.start_value if schedule.kind == "constant" else schedule(progress(sigma)))


def in_zero_init(recipe: Recipe, sigma: float, sigmas: list[float]) -> bool:
    """True while a guidance of the recipe asks for zero-init (CFG-Zero*, arXiv 2503.18886) at this noise level.

    Args:
        sigmas: the noise levels of the run, falling; step i leads from level i to level i + 1.
    """
    steps = max((g.shaping.zero_init_steps for g in recipe.guidances if g.scale != 0.0), default=0)
    return 0 < steps < len(sigmas) and sigma > sigmas[steps]
