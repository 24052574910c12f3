"""Gradients through the host's networks as they are: blocks that write in place, fused kernels without a backward pass.

No code of the host is changed. Both are met from outside, while the network runs forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

try:
    from comfy_kitchen.backends import eager as kitchen
except ImportError:  # an older host, without such kernels
    kitchen = None

KERNELS, DETACH = "comfy_kitchen::", torch.ops.aten.detach.default


class CopyOnWrite(TorchDispatchMode):
    """Within, what is kept for the backward pass stays as it was when something writes into its memory.

    Autograd keeps tensors without copying them, and its own check would end the run at ``x += f(norm(x))``. Copied is
    only what is kept and then written. What is kept shows itself by ``detach``: see ``differentiated``, and the
    recomputation of torch's checkpoints.
    """

    def __init__(self):
        super().__init__()
        self.kept: dict[int, list[ReferenceType[Tensor]]] = {}  # by memory

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for position, name in _written(function):
            value = args[position] if position < len(args) else kwargs[name]
            for tensor in value if isinstance(value, list | tuple) else (value,):
                for kept in self.kept.pop(_memory(tensor), ()):
                    if (alias := kept()) is not None:
                        alias.data = alias.clone()
        output = function(*args, **kwargs or {})
        if function is DETACH:
            self.kept.setdefault(_memory(output), []).append(ref(output))
        return output


@cache
def _written(function) -> list[tuple[int, str]]:
    """The arguments that a function of torch writes into."""
    return [(position, argument.name) for position, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class PlainKernels(TorchFunctionMode):
    """Within, comfy_kitchen's fused kernels run in their plain form, which has a gradient, where one is needed."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "_qualified_op_name", "")
        if name.startswith(KERNELS) and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            function = getattr(kitchen, name.removeprefix(KERNELS), function)
        return function(*args, **kwargs or {})


@contextmanager
def differentiated() -> Iterator[None]:
    """A forward pass, within which a network of the host can be differentiated."""
    with saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor), _modes():
        yield


@contextmanager
def _modes() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(CopyOnWrite())
        if kitchen is not None:
            stack.enter_context(PlainKernels())
        yield


def checkpointed(block: nn.Module) -> None:
    """Let a block keep only its inputs for the backward pass, in which it is computed again (arXiv 1604.06174)."""
    forward = block.forward

    def run(*args, **kwargs):  # on copies, so that the inputs stay what they are
        return forward(*map(copied, args), **{name: copied(value) for name, value in kwargs.items()})
    block.forward = partial(checkpoint, run, use_reentrant=False, context_fn=lambda: (nullcontext(), _modes()))


def copied(value: object) -> object:
    """A value whose tensors are copies."""
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return value.clone() if isinstance(value, Tensor) else value
