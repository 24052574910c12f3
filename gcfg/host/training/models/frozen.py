"""Layers of a frozen network whose weights stay as they were loaded, and are cast where they are used.

A LoRA's base is never updated. In float16, float8 or one of the host's quantized forms it takes a half to an eighth of
the memory of float32, and what is computed is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn import functional as F

from ...concepts.concept import UNET

Stored = tuple[Tensor, Callable]
"""A weight as it was loaded, and the host's function that dequantizes it."""


def stored(base: ModelPatcher) -> dict[str, Stored]:
    """The network's weights as they were loaded, by name, without patches that the host may have merged."""
    return {key.removeprefix(UNET): (entry[0].detach(), entry[1]) for key, (entry, *_) in
            base.get_key_patches(UNET).items()}


def whole(weight: Stored) -> Tensor:
    """A weight as plain float32 on the CPU, a copy."""
    return _plain(weight[0].to("cpu", copy=True), weight[1])


def patched(base: ModelPatcher, weights: Mapping[str, Stored], names: Iterable[str]) -> dict[str, Tensor]:
    """Some weights with the MODEL's patches, float32, on the CPU."""
    return {name: comfy.lora.calculate_weight(base.patches.get(UNET + name, []), whole(weights[name]), UNET + name)
            for name in names}


def is_quantized(weight: Tensor) -> bool:
    """True for the host's quantized tensors."""
    return type(weight) not in (Tensor, nn.Parameter)


def keep(network: nn.Module, base: ModelPatcher, weights: Mapping[str, Stored], dtype: torch.dtype,
         device: torch.device) -> set[str]:
    """Give layers their weights as they were loaded, where those are smaller than in ``dtype`` and unpatched.

    Returns:
        the names of these weights.
    """
    names = set()
    for name, layer in network.named_modules():
        key = f"{name}.weight"
        if not isinstance(layer, Linear | Conv2d) or UNET + key in base.patches:
            continue
        weight, convert = weights[key]
        if is_quantized(weight) or weight.element_size() < dtype.itemsize:
            layer.weight = nn.Parameter(weight.to(device, copy=True), requires_grad=False)
            layer.convert = convert
            names.add(key)
    return names


class Linear(nn.Linear):
    """A linear layer; with a weight from ``keep`` it computes in the type of its input."""

    convert: Callable | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.convert is None:
            return super().forward(x)
        x = x.to(_computed_in(x))
        return _Linear.apply(x, self.weight, self.convert, None if self.bias is None else self.bias.to(x.dtype))


class Conv2d(nn.Conv2d):
    """A convolution; with a weight from ``keep`` it computes in the type of its input."""

    convert: Callable | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.convert is None:
            return super().forward(x)
        x = x.to(_computed_in(x))
        place = self.stride, self.padding, self.dilation, self.groups
        return _Conv2d.apply(x, self.weight, self.convert, None if self.bias is None else self.bias.to(x.dtype), place)


def _computed_in(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _plain(weight: Tensor, convert: Callable, dtype: torch.dtype = torch.float32) -> Tensor:
    """A weight in ``dtype``. The host's function multiplies scales in; it may write into what it is given."""
    if is_quantized(weight):
        return convert(weight, inplace=False).to(dtype)
    return convert(weight.to(torch.float32, copy=True), inplace=True).to(dtype)


class _Linear(torch.autograd.Function):
    """y = x W^T + b, which keeps W for the backward pass as it is stored; no gradient to W and b."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, convert: Callable, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.convert = weight, convert
        return F.linear(x, _plain(weight, convert, x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient @ _plain(ctx.weight, ctx.convert, gradient.dtype), None, None, None


class _Conv2d(torch.autograd.Function):
    """The same for a convolution."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, convert: Callable, bias: Tensor | None, place: tuple) -> Tensor:
        ctx.weight, ctx.convert, ctx.place, ctx.shape = weight, convert, place, x.shape
        return F.conv2d(x, _plain(weight, convert, x.dtype), bias, *place)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weight = _plain(ctx.weight, ctx.convert, gradient.dtype)
        return torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, *ctx.place), None, None, None, None
