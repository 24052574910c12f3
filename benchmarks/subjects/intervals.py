"""Intervals of a mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262, 11: 2.228,
        12: 2.201}
"""Student's t for a two-sided interval of 95 % from n values."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean."""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half
