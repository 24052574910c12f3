"""The host's context windows, with a recipe's rows in every window."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor


class Windows:
    """Stands for a context handler of the host during one step.

    The host splits its batch into windows and wraps each window. The recipe's rows have to join the batch before it is
    split: then each window sees the rows of one batch in one order, and nothing runs after the sampler's own.

    Args:
        handler: the host's.
        join: called as ``calc_cond_batch`` of a step, with what splits the batch as the executor.
    """

    def __init__(self, handler, join: Callable):
        self.handler, self.join = handler, join

    def should_use_context(self, *args, **kwargs) -> bool:
        return self.handler.should_use_context(*args, **kwargs)

    def execute(self, calc_cond_batch: Callable, model, conds: list, x: Tensor, timestep: Tensor,
                options: dict) -> list[Tensor]:
        """The batch in windows; what is called within finds the host's handler again."""
        options = {**options, "context_handler": self.handler}
        return self.join(partial(self.handler.execute, calc_cond_batch), model, conds, x, timestep, options)
