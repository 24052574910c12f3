"""Differences of a layer's weights as maps of their own, which move between devices together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def linear_map(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """``weight`` in the place of the layer's own, without a bias: (rows, ..., in) or (rows, in, *size)."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return CONVOLUTIONS[weight.ndim](x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


class Movable:
    """A frozen dataclass whose tensors, and whose parts' tensors, move together."""

    def to(self, device: torch.device, dtype: torch.dtype):
        """The same on another device, in another type."""
        return replace(self, **{f.name: moved(getattr(self, f.name), device, dtype) for f in fields(self)})

    @property
    def nbytes(self) -> int:
        return sum(held(getattr(self, f.name)) for f in fields(self))


def moved(value, device: torch.device, dtype: torch.dtype):
    """Tensors, movable parts and tuples of them on another device; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(moved(part, device, dtype) for part in value)
    if isinstance(value, dict):
        return {key: moved(part, device, dtype) for key, part in value.items()}
    return value.to(device, dtype) if isinstance(value, Tensor | Movable) else value


def held(value) -> int:
    """Bytes of the tensors in a value."""
    if isinstance(value, tuple):
        return sum(map(held, value))
    return sum(map(held, value.values())) if isinstance(value, dict) else getattr(value, "nbytes", 0)


class Difference(Movable, ABC):
    """W' - W: ``(layer, x)`` to what is to be added to z."""

    @abstractmethod
    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What it adds to the layer's output for its input x."""

    def add_(self, layer: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        """Add it to z in place."""
        return z.add_(self(layer, x))


@dataclass(frozen=True)
class LowRank(Difference):
    """``up`` (out, rank) times ``down`` (rank, in, *kernel), scale factors folded in."""

    up: Tensor
    down: Tensor

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        low = linear_map(layer, x, self.down)
        if self.down.ndim == 2:
            return F.linear(low, self.up)
        return CONVOLUTIONS[self.down.ndim](low, self.up.view(*self.up.shape, *(1,) * (self.down.ndim - 2)))

    def add_(self, layer: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        """Add it to z in place, in the product itself where that is a matrix's."""
        if self.down.ndim != 2 or not z.is_contiguous():
            return super().add_(layer, x, z)
        z.view(-1, z.shape[-1]).addmm_(F.linear(x, self.down).flatten(0, -2), self.up.t())
        return z


@dataclass(frozen=True)
class Dense(Difference):
    """The whole difference, (out, in, *kernel), times a strength."""

    weight: Tensor
    strength: float = 1.0

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self.strength * linear_map(layer, x, self.weight)


@dataclass(frozen=True)
class Kronecker(Difference):
    """``left`` (a, b) and ``right`` (c, d), the Kronecker product of which is the difference (a c, b d) (LoKr)."""

    left: Tensor
    right: Tensor

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        grouped = x.unflatten(-1, (self.left.shape[1], self.right.shape[1]))
        return (self.left @ F.linear(grouped, self.right)).flatten(-2)
