"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..randomness import seed_of
from . import shards
from .rounding import stochastic_round_


def decay_at(step: int, decay: float) -> float:
    """min(decay, (1 + step) / (10 + step)): a short memory at first (TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + step) / (10 + step))


class Average:
    """m <- d m + (1 - d) w, where w are the weights after each step.

    Args:
        parameters: the weights; of those that are cut this process's rows are averaged.
        decay: d, reached after a warm-up; 0 keeps no average, it then stands for the weights themselves.
        on_cpu: keep it in the machine's memory rather than on the weights' device.
        dtype: float32, or bfloat16 for half the memory: then every update is rounded stochastically.
        seed: of the rounding.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, on_cpu: bool = False,
                 dtype: torch.dtype = torch.float32, seed: int = 0):
        self.parameters, self.decay, self.seed = parameters, decay, seed
        self.values: dict[str, Tensor] = {} if not decay else {
            name: shards.own(p).to("cpu" if on_cpu else p.device, dtype, copy=True) for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step ``step``."""
        d, values, weights = decay_at(step, self.decay), [], []
        for name, value in self.values.items():
            weight = shards.own(self.parameters[name])
            if value.dtype == torch.bfloat16:
                place = self.seed, "average", step, name, shards.part_of(self.parameters[name])
                generator = torch.Generator(weight.device).manual_seed(seed_of(*place))
                exact = value.to(weight.device, torch.float32).lerp_(weight.float(), 1.0 - d)
                value.copy_(stochastic_round_(exact, generator))
            elif weight.device == value.device and weight.dtype == value.dtype:
                values.append(value)
                weights.append(weight)
            else:  # one at a time: no second copy of all weights
                value.lerp_(weight.to(value), 1.0 - d)
        if values:
            torch._foreach_lerp_(values, weights, 1.0 - d)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back an average, whole."""
        for name, value in self.values.items():
            value.copy_(shards.rows_of(tensors[name], self.parameters[name]))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the weights are the average; afterwards they are to the bit what they were."""
        own = {name: shards.own(p).clone() if shards.is_cut(p) else p.data
               for name, p in self.parameters.items() if name in self.values}
        try:
            for name, value in self.values.items():
                self._put(name, value.to(own[name]))
            yield
        finally:
            for name, value in own.items():
                self._put(name, value)

    def _put(self, name: str, value: Tensor) -> None:
        parameter = self.parameters[name]
        if shards.is_cut(parameter):
            shards.own(parameter).copy_(value)
        else:
            parameter.data = value

    def exported(self) -> dict[str, Tensor]:
        """The averaged weights, or the weights themselves where there is no average; live, this process's rows."""
        return self.values or {name: shards.own(p) for name, p in self.parameters.items()}
