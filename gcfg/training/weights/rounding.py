"""Rounding that keeps the mean."""

from __future__ import annotations

import torch
from torch import Tensor


def stochastic_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 to bfloat16, up or down with the probability that keeps the mean (arXiv 2010.06192, section 3).

    Rounding to the nearest loses updates below 1/256 of a weight, which at a rate of 1e-5 are most of them.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    return ((bits + noise) & -0x10000).view(torch.float32).to(torch.bfloat16)
