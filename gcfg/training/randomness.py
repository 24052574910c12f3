"""Random numbers that depend on a seed and a place only, so that nothing has to be remembered to go on exactly."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*place: object) -> int:
    """63 bits for a place such as (seed, "noise", step, index)."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little") >> 1


def generator(*place: object) -> torch.Generator:
    """A CPU generator for a place."""
    return torch.Generator().manual_seed(seed_of(*place))


def draw(shape: tuple[int, ...], *place: object) -> tuple[float, float, Tensor, Tensor]:
    """For one latent of ``shape`` (C, H, W): two uniform numbers (level, flip), noise, channel offset (C, 1, 1)."""
    source = generator(*place)
    level, flip = torch.rand(2, generator=source).tolist()
    noise = torch.randn(shape, generator=source)
    return level, flip, noise, torch.randn((shape[0], 1, 1), generator=source)
