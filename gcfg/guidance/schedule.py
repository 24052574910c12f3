"""The scale of a guidance over sampling progress, and what sampling progress is at a noise level."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

KINDS = ("constant", "linear", "cosine", "power", "points")


@dataclass(frozen=True)
class Schedule:
    """A factor on the scale of a guidance over sampling progress p, 0 (all noise) to 1 (done).

    Args:
        kind: ``constant`` is ``start_value`` throughout; ``linear``, ``cosine`` and ``power`` lead from
            ``start_value`` to ``end_value`` along p, (1 - cos(pi p)) / 2 and p ** exponent; ``points`` interpolates
            linearly between the given points and holds the first and last value outside them.
        points: pairs (progress, factor) for ``points``.

    Raises:
        ValueError: unknown kind, a number that is not finite, or points that are missing or not in 0..1.
    """

    kind: str = "constant"
    start_value: float = 1.0
    end_value: float = 1.0
    exponent: float = 2.0
    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Unknown schedule '{self.kind}'; choose one of {', '.join(KINDS)}.")
        object.__setattr__(self, "points", tuple(sorted((float(p), float(v)) for p, v in self.points)))
        numbers = [self.start_value, self.end_value, self.exponent, *(n for point in self.points for n in point)]
        if not all(math.isfinite(n) for n in numbers):
            raise ValueError("A schedule needs finite numbers.")
        if self.kind == "power" and self.exponent <= 0:
            raise ValueError(f"The exponent of a power schedule must be positive, not {self.exponent}.")
        if self.kind == "points" and not self.points:
            raise ValueError("A schedule of points needs at least one point 'progress: factor', e.g. 0: 1, 1: 0.")
        if any(not 0.0 <= p <= 1.0 for p, _ in self.points):
            raise ValueError("The progress of a schedule point lies between 0 and 1.")

    def __call__(self, progress: float) -> float:
        """The factor at a sampling progress in 0..1."""
        if self.kind == "points":
            return self._between_points(progress)
        along = {"constant": 0.0, "linear": progress, "cosine": (1.0 - math.cos(math.pi * progress)) / 2.0,
                 "power": progress ** self.exponent}[self.kind]
        return self.start_value + (self.end_value - self.start_value) * along

    def _between_points(self, progress: float) -> float:
        after = bisect_left(self.points, (progress, -math.inf))
        if after == 0:
            return self.points[0][1]
        if after == len(self.points):
            return self.points[-1][1]
        (p0, v0), (p1, v1) = self.points[after - 1], self.points[after]
        return v0 + (v1 - v0) * (progress - p0) / (p1 - p0)


def parse_points(text: str) -> tuple[tuple[float, float], ...]:
    """Read ``"0: 1, 0.5: 2.5, 1: 0"`` as (progress, factor) pairs; semicolons and line breaks separate points, too."""
    points = []
    for entry in filter(None, (part.strip() for part in text.replace(";", ",").replace("\n", ",").split(","))):
        try:
            progress, value = (float(number) for number in entry.split(":"))
        except ValueError:
            raise ValueError(f"'{entry}' is no schedule point; write 'progress: factor', "
                             "e.g. 0: 1, 0.5: 2.5, 1: 0.") from None
        points.append((progress, value))
    return tuple(points)


class Progress:
    """Sampling progress as a model's noise schedule defines it, in both directions.

    Args:
        percent_to_sigma: noise level at a progress in 0..1, falling; a host's own function, so that percentages mean
            what they mean in its other nodes.
        sigma_max: noise level at progress 0 (hosts answer "infinity" there).
    """

    STEPS = 1000

    def __init__(self, percent_to_sigma: Callable[[float], float], sigma_max: float):
        self.sigma_at, self.sigma_max = percent_to_sigma, sigma_max

    @cached_property
    def _rising(self) -> list[float]:
        """The noise levels at evenly spaced progress, lowest first; tabulated when a schedule first needs them."""
        inner = [float(self.sigma_at(i / self.STEPS)) for i in range(self.STEPS - 1, 0, -1)]
        return [0.0, *inner, max(self.sigma_max, inner[-1])]

    def __call__(self, sigma: float) -> float:
        """Progress at a noise level, linear between a thousand tabulated levels."""
        sigma = min(max(sigma, 0.0), self._rising[-1])
        above = bisect_left(self._rising, sigma)
        if above == 0:
            return 1.0
        low, high = self._rising[above - 1], self._rising[above]
        return 1.0 - (above - 1 + (sigma - low) / (high - low)) / self.STEPS

    def within(self, sigma: float, start: float, end: float) -> bool:
        """True if the noise level lies in the window, both ends included."""
        return (start, end) == (0.0, 1.0) or self.sigma_at(end) <= sigma <= self.sigma_at(start)
