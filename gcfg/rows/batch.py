"""The rows of one batch, and which adapter each of them takes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .changes import LayerChange


class Regrouped(Exception):
    """Rows of different adapters cannot be told apart in a batch; run each adapter's rows by themselves."""


class Rows:
    """Which adapter (or None) each row of a batch takes."""

    def __init__(self, owners: Sequence[Hashable | None]):
        self.owners = tuple(owners)
        self.uniform = len(set(owners)) == 1
        self.at: dict[Hashable, tuple[int, int] | list[int]] = {}
        for owner in dict.fromkeys(o for o in owners if o is not None):
            at = [i for i, o in enumerate(owners) if o == owner]
            self.at[owner] = (at[0], len(at)) if at[-1] - at[0] == len(at) - 1 else at
        self._without: dict[frozenset, tuple[list[int], Rows]] = {}

    def change_(self, at: tuple[int, int] | list[int], layer: nn.Module, change: LayerChange, x: Tensor,
                y: Tensor) -> None:
        """Make an adapter's change to its rows of ``y = layer(x)``, in place.

        Raises:
            Regrouped: the rows of the batch are not the leading dimension of x.
        """
        if self.uniform:
            return write(change(layer, x, y), y)
        if x.shape[0] != len(self.owners) or y.shape[0] != x.shape[0]:
            raise Regrouped(f"{type(layer).__name__} sees {x.shape[0]} rows of a batch of {len(self.owners)}")
        if isinstance(at, tuple):
            part = y.narrow(0, *at)
            write(change(layer, x.narrow(0, *at), part), part)
        else:
            index = torch.tensor(at, device=y.device)
            y.index_copy_(0, index, change(layer, x.index_select(0, index), y.index_select(0, index)).to(y.dtype))

    def without(self, owners: frozenset) -> tuple[list[int], Rows]:
        """The places of the rows that take none of these adapters, and what those take."""
        if owners not in self._without:
            kept = [i for i, o in enumerate(self.owners) if o not in owners]
            self._without[owners] = kept, Rows([self.owners[i] for i in kept])
        return self._without[owners]

    def has(self, owners: Iterable[Hashable]) -> bool:
        return any(owner in owners for owner in self.at)


def write(new: Tensor, place: Tensor) -> None:
    """Put a change where it belongs, unless it was made there."""
    if new is not place:
        place.copy_(new)
