"""Fewer forward passes: predictions that are reused between steps, as offsets from a fresh baseline.

Between refreshes D_i is taken as D_0 + c(sigma) o, where o = (D_i - D_0) / c is kept from the last refresh: guidances
change slowly over the noise levels while the predictions themselves do not (the observation of arXiv 2312.12487 and
2410.19355). The factor c, sigma / sqrt(sigma^2 + 1) or sigma for flow matching, makes o a difference of velocities;
the difference of denoised predictions itself vanishes with the noise.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .shaping import ratio, rms


@dataclass(frozen=True)
class Performance:
    """How many forward passes to save; the defaults save none.

    Args:
        refresh_every: evaluate guidances on every k-th step and reuse their offsets in between.
        calm_below: adaptive: a guidance whose offset changed by less than this fraction at its last refresh is calm,
            and waits twice as long for the next one; it stays calm up to twice the fraction. Decided for each sample,
            so that a sample does not depend on its batch. 0 switches it off.
        concept_start, concept_end: window of sampling progress for guidances of other models than the base.

    Raises:
        ValueError: a setting outside its range.
    """

    refresh_every: int = 1
    calm_below: float = 0.0
    concept_start: float = 0.0
    concept_end: float = 1.0

    def __post_init__(self) -> None:
        if self.refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1, not {self.refresh_every}.")
        if not 0.0 <= self.calm_below < 1.0:
            raise ValueError(f"calm_below must lie between 0 and 1, not {self.calm_below}.")
        if not 0.0 <= self.concept_start <= self.concept_end <= 1.0:
            raise ValueError("The concept window must satisfy 0 <= concept_start <= concept_end <= 1, not "
                             f"{self.concept_start}..{self.concept_end}.")

    @property
    def reuses(self) -> bool:
        """True if predictions are reused at all."""
        return self.refresh_every > 1 or self.calm_below > 0.0


@dataclass
class _Offset:
    """The last known o (B, ...) of a prediction; for each sample the step it is from, and whether it is calm."""

    value: Tensor
    steps: list[int]
    calm: list[bool]


class Reuse:
    """The offsets of one run. Steps are told by their noise level, not by counting calls.

    Args:
        sigmas: the noise levels of the run, falling.
        flow: the models are of flow matching.
    """

    def __init__(self, performance: Performance, sigmas: Sequence[float], flow: bool = False):
        self.performance, self.flow = performance, flow
        self._rising = sorted(sigmas)
        self._offsets: dict[Hashable, _Offset] = {}

    def _step(self, sigma: float) -> int:
        """The step that a noise level belongs to: how many levels of the run lie above it."""
        return len(self._rising) - bisect_left(self._rising, sigma * (1 + 1e-6))

    def _due(self, prediction: Hashable, sigma: float) -> list[bool]:
        """For each sample, whether the prediction must be evaluated here."""
        known, step = self._offsets[prediction], self._step(sigma)
        waits = [self.performance.refresh_every * (2 if calm else 1) for calm in known.calm]
        return [wait == 1 or not 0 <= step - last < wait for wait, last in zip(waits, known.steps, strict=True)]

    def _size(self, sigma: float) -> float:
        """c(sigma): how much a difference of velocities counts in a denoised prediction."""
        return sigma if self.flow else sigma / math.sqrt(sigma**2 + 1)

    def ready(self, prediction: Hashable, sigma: float) -> bool:
        """True if no sample needs the prediction evaluated at this noise level."""
        return prediction in self._offsets and not any(self._due(prediction, sigma))

    def recall(self, prediction: Hashable, sigma: float, baseline: Tensor) -> Tensor:
        """The prediction (B, ...) from its offset and a fresh baseline."""
        return baseline + self._size(sigma) * self._offsets[prediction].value

    def settle(self, found: Mapping[Hashable, Tensor], reused: Iterable[Hashable], sigma: float,
               baseline: Tensor) -> dict[Hashable, Tensor]:
        """What a step uses: evaluated predictions, kept for later, and those that are reused."""
        values = {p: self.store(p, sigma, value, baseline) for p, value in found.items()}
        return values | {p: self.recall(p, sigma, baseline) for p in reused}

    def store(self, prediction: Hashable, sigma: float, value: Tensor, baseline: Tensor) -> Tensor:
        """Keep an evaluated prediction (B, ...); returns it, with samples that were not due as they would be alone."""
        offset, step = (value - baseline) / self._size(sigma), self._step(sigma)
        known = self._offsets.get(prediction)
        if known is None:
            self._offsets[prediction] = _Offset(offset, [step] * len(offset), [False] * len(offset))
            return value
        due = self._due(prediction, sigma)
        if self.performance.calm_below > 0.0:
            change = ratio(rms(offset - known.value), rms(offset)).flatten().tolist()
            limits = [self.performance.calm_below * (2 if calm else 1) for calm in known.calm]
            measured = [c < limit for c, limit in zip(change, limits, strict=True)]
            known.calm = [m if d else calm for m, d, calm in zip(measured, due, known.calm, strict=True)]
        if not all(due):
            fresh = torch.tensor(due, device=offset.device).view(-1, *[1] * (offset.ndim - 1))
            offset = torch.where(fresh, offset, known.value)
            value = baseline + self._size(sigma) * offset
        known.value = offset
        known.steps = [step if d else last for d, last in zip(due, known.steps, strict=True)]
        return value
