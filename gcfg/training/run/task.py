"""What is trained, who watches it, how fast it learns, and how a run can fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.dataset import Latent


class Diverged(ValueError):
    """The loss or its gradient is not finite."""


class OutOfMemory(RuntimeError):
    """No memory, even for smaller micro-batches."""


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        parameters: the trained weights by name.
        losses: (latents (B, C, h, w), noise, level (B,) in [0, 1), the B pictures) -> losses (B,), see
            ``objectives.DiffusionLoss``.
        device: of the weights.
        autocast: type to compute in, None for the weights' own.
        features, notes: kept in the state.
    """

    parameters: Mapping[str, nn.Parameter]
    losses: Callable[[Tensor, Tensor, Tensor, Sequence[Latent]], Tensor]
    device: torch.device = torch.device("cpu")
    autocast: torch.dtype | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)


class Watch:
    """What a run asks and tells; a node and the command line each have their own."""

    def begins(self) -> None:
        """Before the first step: from now on stopping in mid-step would lose something, and time counts."""

    def interrupted(self) -> bool:
        """Asked between steps: True saves and stops."""
        return False

    def progress(self, step: int, steps: int, loss: float) -> None:
        """After every step."""

    def preview(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """When a preview is due, with the averaged weights; within, those in training are these too."""

    def saved(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """After every save of the state, with the averaged weights; within, those in training are these too."""

    def tell(self, text: str) -> None:
        """What a person should know."""
        logging.info("GCFG: %s", text)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which torch says that a device or the machine has no memory left."""
    kinds = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))
    return isinstance(error, kinds) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error)
