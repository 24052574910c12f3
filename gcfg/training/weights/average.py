"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def decay_at(step: int, decay: float) -> float:
    """min(decay, (1 + step) / (10 + step)): a short memory at first (TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + step) / (10 + step))


class Average:
    """m <- d m + (1 - d) w in float32, where w are the weights after each step.

    Args:
        parameters: the weights.
        decay: d, reached after a warm-up; 0 keeps no average, it then stands for the weights themselves.
        on_cpu: keep it in the machine's memory rather than on the weights' device.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, on_cpu: bool = False):
        self.parameters, self.decay = parameters, decay
        self.values: dict[str, Tensor] = {} if not decay else {
            name: p.detach().to("cpu" if on_cpu else p.device, torch.float32, copy=True)
            for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step ``step``."""
        d, values, weights = decay_at(step, self.decay), [], []
        for name, value in self.values.items():
            weight = self.parameters[name].detach()
            if weight.device == value.device and weight.dtype == value.dtype:
                values.append(value)
                weights.append(weight)
            else:  # one at a time: no second copy of all weights
                value.lerp_(weight.to(value), 1.0 - d)
        if values:
            torch._foreach_lerp_(values, weights, 1.0 - d)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(tensors[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the weights are the average; afterwards they are to the bit what they were."""
        own = {name: self.parameters[name].data for name in self.values}
        try:
            for name, value in self.values.items():
                self.parameters[name].data = value.to(own[name])
            yield
        finally:
            for name, value in own.items():
                self.parameters[name].data = value

    def exported(self) -> dict[str, Tensor]:
        """The averaged weights, or the weights themselves where there is no average; live."""
        return self.values or {name: p.detach() for name, p in self.parameters.items()}
