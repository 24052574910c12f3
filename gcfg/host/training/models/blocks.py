"""Transformer blocks of a network in training: compiled, recomputed in the backward pass."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import checkpoint

from ....training.memory import Plan
from .gradients import checkpointed, copied

BACKEND = "inductor"
"""Of torch.compile."""


def prepare(blocks: Iterable[nn.Module], plan: Plan, in_place: bool = False) -> None:
    """Compile blocks and recompute them in the backward pass, as far as the plan says so.

    Args:
        blocks: of a network.
        plan: how it is trained.
        in_place: whether they may write into what is kept for the backward pass, see ``gradients``.
    """
    for block in blocks:
        if plan.compiled:
            block.forward = compiled(block.forward, in_place)
        if plan.checkpointing and in_place:
            checkpointed(block)
        elif plan.checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compiled(forward: Callable, in_place: bool = False) -> Callable:
    """A block compiled as one graph, or a clear error (ValueError) when it is first called.

    torch keeps what it compiles with the code of a function, only a few forms of each, and a host's blocks all have the
    same code but unlike places, widths and hooks. So each is called by a function with code of its own. In a graph
    nothing is written in place but the inputs, so that one ``in_place`` needs no more than copies of these.
    """
    def run(*args, **kwargs):
        return forward(*args, **kwargs)
    own = types.FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
    fast = torch.compile(own, backend=BACKEND, fullgraph=True)

    def said(*args, **kwargs):
        try:
            if not in_place:
                return fast(*args, **kwargs)
            with _disable_current_modes():  # CopyOnWrite, under which torch would not compile
                return fast(*map(copied, args), **{name: copied(value) for name, value in kwargs.items()})
        except TorchDynamoException as error:
            why = " ".join(str(error).strip().split("\n\n")[0].split())[:300]
            raise ValueError(f"torch.compile cannot compile this model's blocks here ({why}); switch compile off. It "
                             "needs a C++ compiler, and on a GPU Triton.") from error
    return said


def transformer_blocks(network: nn.Module) -> list[nn.Module]:
    """The members of all lists of modules directly below a network."""
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]
