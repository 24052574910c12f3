"""Layers of a frozen network whose weights stay as they were loaded, and are cast where they are used.

A LoRA's base is never updated. In float16, float8 or one of the host's quantized forms it takes a half to an eighth of
the memory of float32, and what is computed is the same. What of it does not fit the GPU can wait elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from torch import Tensor, nn
from torch.nn import functional as F

from ...concepts.concept import UNET

Stored = tuple[Tensor, Callable]
"""A weight as it was loaded, and the host's function that dequantizes it."""


def stored(base: ModelPatcher) -> dict[str, Stored]:
    """The network's weights as they were loaded, by name, without patches that the host may have merged."""
    network, found = base.model.diffusion_model, {}
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    for name in tensors.keys() & network.state_dict().keys():  # which names the scales of quantized weights, too
        weight, _, convert = get_key_weight(base.model, UNET + name)
        if UNET + name in base.backup:
            weight = base.backup[UNET + name].weight
        if UNET + name in base.hook_backup:
            weight = base.hook_backup[UNET + name][0]
        found[name] = weight.detach(), convert or (lambda weight, inplace: weight)
    return found


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
         device: torch.device, resident: int | None = None) -> set[str]:
    """Give linear and convolution layers their unpatched weights as they were loaded.

    Args:
        network: whose layers are those of this module.
        base, weights: the MODEL and its ``stored`` weights.
        dtype: of the others; weights of that type have nothing to gain and are left to the caller.
        device: where they are used.
        resident: bytes that may lie on that device; the weights of the blocks after them wait in the machine's memory,
            those in ``dtype`` too. None for all.

    Returns:
        the names of these weights.
    """
    layers = {f"{name}.weight": layer for name, layer in network.named_modules()
              if isinstance(layer, Linear | Conv2d) and UNET + name + ".weight" not in base.patches}
    sizes = {key: _bytes(weights[key][0]) for key in layers}
    waiting = resident is not None and sum(sizes.values()) > resident
    names, used = set(), 0
    for key, layer in layers.items():
        weight, convert = weights[key]
        if not waiting and not is_quantized(weight) and weight.element_size() >= dtype.itemsize:
            continue
        used += sizes[key]
        stays = device if resident is None or used <= resident else torch.device("cpu")
        layer.weight = nn.Parameter(weight.to(stays, copy=True), requires_grad=False)
        layer.convert = convert
        names.add(key)
    return names


def _bytes(weight: Tensor) -> int:
    """About how much a weight takes; the packed form of a quantized one tells."""
    packed = getattr(weight, "_qdata", weight)
    return packed.numel() * packed.element_size()


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


def _plain(weight: Tensor, convert: Callable, dtype: torch.dtype = torch.float32,
           device: torch.device | None = None) -> Tensor:
    """A weight in ``dtype`` where it is used. The host's function multiplies the scales of float8 in."""
    weight = weight.to(device or weight.device, non_blocking=True)
    if is_quantized(weight):
        return convert(weight, inplace=False).to(dtype)
    if weight.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return weight.to(dtype)
    return convert(weight.to(torch.float32), inplace=True).to(dtype)


class _Linear(torch.autograd.Function):
    """y = x W^T + b, which keeps W for the backward pass as it is stored; no gradient to W and b."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, convert: Callable, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.convert = weight, convert
        return F.linear(x, _plain(weight, convert, x.dtype, x.device), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient @ _plain(ctx.weight, ctx.convert, gradient.dtype, gradient.device), None, None, None


class _Conv2d(torch.autograd.Function):
    """The same for a convolution."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, convert: Callable, bias: Tensor | None, place: tuple) -> Tensor:
        ctx.weight, ctx.convert, ctx.place, ctx.shape = weight, convert, place, x.shape
        return F.conv2d(x, _plain(weight, convert, x.dtype, x.device), bias, *place)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weight = _plain(ctx.weight, ctx.convert, gradient.dtype, gradient.device)
        return torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, *ctx.place), None, None, None, None
