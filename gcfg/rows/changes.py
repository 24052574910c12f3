"""What patches of a layer's weight do to the layer's output: every kind of patch in its unmerged form.

A layer computes z = W x, W of shape (out, in, *kernel). A patch that makes W' of W is written as a change of z, so that
it can act on some rows of a batch over one copy of W (LoRA: arXiv 2106.09685, equation 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .differences import Difference, Movable, linear_map

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# --- steps: z of the weight before a patch -> z of the weight after it; they may write into the z that they get ------

Before = Callable[[Tensor], Tensor]
"""z of the weight before a patch, for another x."""


@dataclass(frozen=True)
class Added(Movable):
    """W' = keep W + difference."""

    difference: Difference
    keep: float = 1.0

    def __call__(self, layer: nn.Module, x: Tensor, z: Tensor, before: Before) -> Tensor:
        return self.difference.add_(layer, x, z if self.keep == 1.0 else z.mul_(self.keep))


@dataclass(frozen=True)
class Replaced(Movable):
    """W' = weight, whatever W is; broadcast to its shape."""

    weight: Tensor
    shape: tuple[int, ...]

    def __call__(self, layer: nn.Module, x: Tensor, z: Tensor, before: Before) -> Tensor:
        return linear_map(layer, x, self.weight.expand(self.shape))


@dataclass(frozen=True)
class Turned(Movable):
    """W' = T keep W for a T that acts on the outputs (OFT, arXiv 2306.07280; BOFT, arXiv 2311.06243).

    Attributes:
        turn: maps a matrix (out, n), float32, as it maps a weight.
    """

    turn: Callable[[Tensor], Tensor]
    keep: float = 1.0

    def __call__(self, layer: nn.Module, x: Tensor, z: Tensor, before: Before) -> Tensor:
        channels = channel_dim(layer, z)
        first = (self.keep * z.float()).movedim(channels, 0)
        return self.turn(first.flatten(1)).view(first.shape).movedim(0, channels).to(z)


@dataclass(frozen=True)
class InputMixed(Movable):
    """W' = W (1 + A) + B, with A acting on the inputs (GLoRA, arXiv 2306.07967).

    Attributes:
        mixes: up to two factors of A = first second, (in, rank) and (rank, in).
        difference: B.
    """

    first: Tensor
    second: Tensor
    difference: Difference
    keep: float = 1.0

    def __call__(self, layer: nn.Module, x: Tensor, z: Tensor, before: Before) -> Tensor:
        channels = channel_dim(layer, x)
        mixed = F.linear(F.linear(x.movedim(channels, -1), self.second), self.first).movedim(-1, channels)
        return self.keep * before(x + mixed) + self.difference(layer, x)


@dataclass(frozen=True)
class Decomposed(Movable):
    """W' = W + strength (magnitude (W + difference) - W), the magnitude by output or by input (DoRA, arXiv 2402.09353).

    Attributes:
        outputs, inputs: new norm over old norm, (out,) or (in,); one of them.
    """

    difference: Difference
    strength: float
    outputs: Tensor | None = None
    inputs: Tensor | None = None
    keep: float = 1.0

    def __call__(self, layer: nn.Module, x: Tensor, z: Tensor, before: Before) -> Tensor:
        if self.inputs is None:
            whole = along(layer, z, self.outputs) * (self.keep * z + self.difference(layer, x))
        else:
            scaled = x * along(layer, x, self.inputs)
            whole = self.keep * before(scaled) + self.difference(layer, scaled)
        return torch.lerp(self.keep * z, whole, self.strength)


@dataclass(frozen=True)
class Slice(Movable):
    """A step on a part of a fused weight: ``dim`` 0 takes outputs, 1 inputs (additions only) from ``start`` on."""

    step: Callable
    dim: int
    start: int
    length: int

    def __call__(self, layer: nn.Module, x: Tensor, z: Tensor, before: Before) -> Tensor:
        if self.dim == 1:
            return self.step(layer, x.narrow(channel_dim(layer, x), self.start, self.length), z, before)

        def part(whole: Tensor) -> Tensor:
            return whole.narrow(channel_dim(layer, whole), self.start, self.length)
        old = part(z)
        new = self.step(layer, x, old, lambda x: part(before(x)))
        if new is not old:
            old.copy_(new)
        return z


def channel_dim(layer: nn.Module, x: Tensor) -> int:
    """Where the channels of a layer's input or output are."""
    return 1 if hasattr(layer, "stride") else x.ndim - 1


def along(layer: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """Values (channels,) in the shape that multiplies x."""
    return values.view(-1, *(1,) * (x.ndim - 2)) if hasattr(layer, "stride") else values


# --- a layer ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class LayerChange(Movable):
    """What an adapter changes in one layer.

    Attributes:
        steps: of the weight of a linear or convolution layer, in this order.
        weight: difference of a norm's weight, (C,).
        bias: difference of the bias, (out,).
        outputs: what then becomes of the whole output, bias included, in this order: (x, y) to y.
    """

    steps: tuple[Callable, ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None
    outputs: tuple[Callable, ...] = ()

    def __call__(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The changed output for some rows x (rows, ...) of which the layer makes y; it may be written into y."""
        y = self._by_weights(layer, x, y)
        for output in self.outputs:
            y = output(x, y)
        return y

    def _by_weights(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.weight is not None or isinstance(layer, NORMS):
            return y.add_(norm_difference(layer, x, self.weight, self.bias))
        if not self._additive:
            y = self._through(layer, x, y)
        else:
            for step in self.steps:
                y = step(layer, x, y, None)
        return y if self.bias is None else y.add_(along(layer, y, self.bias))

    @cached_property
    def _additive(self) -> bool:
        return all(map(additive, self.steps))

    def _through(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        bias = along(layer, y, bias_of(layer, x))

        def upto(count: int, x: Tensor, z: Tensor) -> Tensor:
            for k, step in enumerate(self.steps[:count]):
                z = step(layer, x, z, lambda other, k=k: upto(k, other, layer.forward(other) - bias))
            return z
        return upto(len(self.steps), x, y - bias) + bias


def additive(step: Callable) -> bool:
    """True for a step that leaves z as it is and adds to it, whatever the bias."""
    return additive(step.step) if isinstance(step, Slice) else isinstance(step, Added) and step.keep == 1.0


def bias_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's bias as the layer uses it, wherever and in whatever form it keeps it: its output for zero."""
    if getattr(layer, "bias", None) is None:
        return x.new_zeros(1)
    size = getattr(layer, "kernel_size", ())
    shape = (1, x.shape[1], *size) if hasattr(layer, "stride") else (1, x.shape[-1])
    return layer.forward(x.new_zeros(shape)).movedim(1, -1).flatten(0, -2)[0]


def norm_difference(layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The change of a norm's output when its weight and bias change: both enter linearly."""
    shape = (1, -1, *[1] * (x.ndim - 2)) if isinstance(layer, nn.GroupNorm) else (-1,)
    added = torch.zeros_like(x) if bias is None else bias.to(x).view(shape).expand_as(x)
    if weight is None:
        return added
    if isinstance(layer, nn.GroupNorm):
        plain = F.group_norm(x, layer.num_groups, eps=layer.eps)
    elif isinstance(layer, nn.LayerNorm):
        plain = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    else:
        plain = F.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    return plain * weight.to(x).view(shape) + added
