"""The null-text features of a model: the mean output of each cross-attention on the empty prompt.

The mean over batch and positions is the constant with the least squared error; it is exact where all context tokens are
equal. How far the outputs are from it is reported per block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import cross_attention_blocks

TIMESTEPS = (550, 700, 850, 990)
"""Noise levels (of 1000) to average over; low ones alone give worse features."""
LATENTS = 8
"""Latents that are enough."""


@dataclass
class BlockMean:
    """Running mean and scatter of vectors, merged call by call (Chan, Golub and LeVeque, 1979).

    Attributes:
        count: vectors so far.
        mean: (C,) float32.
        scatter: sum of squared distances from the mean.
    """

    count: int = 0
    mean: Tensor | float = 0.0
    scatter: float = 0.0

    def add(self, outputs: Tensor) -> None:
        """Add outputs (..., C), reduced in float32."""
        vectors = outputs.detach().reshape(-1, outputs.shape[-1]).float()
        mean = vectors.mean(0)
        scatter = float((vectors - mean).square().sum())
        shift, total = mean.cpu() - self.mean, self.count + len(vectors)
        self.scatter += scatter + float(shift.square().sum()) * self.count * len(vectors) / total
        self.mean = self.mean + shift * (len(vectors) / total)
        self.count = total

    @property
    def residual(self) -> float:
        """Root of the mean squared distance from the mean over the root mean square: 0 constant, 1 no constant part."""
        power = self.scatter + self.count * float(self.mean.square().sum())
        return (self.scatter / power) ** 0.5 if power > 0 else 0.0


@contextlib.contextmanager
def measure(unet: nn.Module) -> Iterator[dict[str, BlockMean]]:
    """Collect the cross-attention outputs of every forward pass of ``unet`` inside the ``with`` block.

    Yields:
        By transformer block its ``BlockMean``; the model is as it was before once the block is left.
    """
    means = {name: BlockMean() for name in cross_attention_blocks(unet)}
    handles = []
    try:
        for name, block in cross_attention_blocks(unet).items():
            collect = means[name].add
            handles.append(block.attn2.register_forward_hook(lambda module, args, out, collect=collect: collect(out)))
        yield means
    finally:
        for handle in handles:
            handle.remove()


def features(means: Mapping[str, BlockMean]) -> dict[str, Tensor]:
    """The features (1, 1, C) by block, float32; RuntimeError if a block never ran or gave NaN or infinite values."""
    silent = [name for name, mean in means.items() if mean.count == 0]
    if silent:
        raise RuntimeError(f"the cross-attention of {silent[0]} did not run during calibration; connect the model from "
                           "before attention patches were applied.")
    broken = [name for name, mean in means.items() if not torch.isfinite(mean.mean).all()]
    if broken:
        raise RuntimeError(f"the cross-attention of {broken[0]} gave NaN or infinite values during calibration; run "
                           "the model in a wider type (bfloat16 or float32).")
    return {name: mean.mean.reshape(1, 1, -1) for name, mean in means.items()}


def draw(count: int, channels: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stand-ins for ``count`` pictures and their noise, (count, channels, size, size) each, of unit variance.

    Latents have about unit variance as well, and at these noise levels the noise dominates. Drawn on the CPU, so that a
    seed gives the same features everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures, noise = torch.randn((2, count, channels, size, size), generator=generator)
    return pictures, noise


def table(residual: Mapping[str, float]) -> str:
    """The residual per block as lines of text, the mean first."""
    mean = sum(residual.values()) / len(residual)
    lines = [f"{value:8.4f}  {name}" for name, value in residual.items()]
    head = f"{mean:8.4f}  mean of {len(residual)} blocks (0 = attn2 is constant, 1 = it is not at all)"
    return "\n".join([head, *lines])
