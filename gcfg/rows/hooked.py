"""Functions in a network's way, also where torch.compile has been at work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def uncompiled(function: Callable) -> Callable:
    """A function that torch.compile leaves as it is; where nobody has compiled anything, its import is saved."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def hook(layer: nn.Module, after: Callable) -> Callable[[], None]:
    """A forward hook; returns what takes it away.

    What was compiled before does not notice a new hook, only that the layer has a ``forward`` of its own.
    """
    remove = layer.register_forward_hook(uncompiled(after)).remove
    if "forward" in layer.__dict__:
        return remove
    layer.forward = layer.forward

    def undo() -> None:
        layer.__dict__.pop("forward", None)
        remove()
    return undo


class Reads(TorchFunctionMode):
    """Notes which of some tensors torch functions are given."""

    def __init__(self, tensors: Mapping[int, Hashable]):
        super().__init__()
        self.tensors, self.seen = tensors, set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            parts = value if isinstance(value, list | tuple) else (value,)
            self.seen.update(self.tensors[id(part)] for part in parts if id(part) in self.tensors)
        return function(*args, **kwargs)
