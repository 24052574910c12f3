"""Rounding that keeps the mean."""

from __future__ import annotations

import torch
from torch import Tensor


def stochastic_round_(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 in place to what bfloat16 has, up or down so that the mean stays (arXiv 2010.06192, section 3).

    Rounding to the nearest loses updates below 1/256 of a weight, which at a rate of 1e-5 are most of them.
    """
    bits = values.view(torch.int32)
    bits += torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    bits &= -0x10000
    return values
