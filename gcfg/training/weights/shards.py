"""Weights that are cut over the processes of a run (FSDP2, arXiv 2304.11277), for a network that does not fit one GPU.

Each process has some rows of every weight, of its gradient, its average and what the optimizer keeps for it; a unit's
weights are put together while it is computed. On disk everything is whole, so that any number of processes goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..run import distributed

_END = -1


def cut(network: nn.Module, units: Iterable[nn.Module], device: torch.device) -> None:
    """Leave of a network's weights, which may lie on the CPU, this process's rows, on ``device``.

    Args:
        network: whose forward pass begins with itself.
        units: modules below it whose weights are put together, and dropped again, one after another.
        device: of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # which torch has not on every system

    mesh = init_device_mesh(device.type, (distributed.world(),))
    for module in (*units, network):  # the network too must drop its weights: a held-out loss has no backward pass
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_cut(weight: Tensor) -> bool:
    """True for a weight of a network that was ``cut``."""
    return hasattr(weight, "to_local")


def own(weight: Tensor) -> Tensor:
    """This process's rows of a weight or gradient, live; all of them where it is not cut."""
    weight = weight.detach()
    return weight.to_local() if is_cut(weight) else weight


def part_of(weight: Tensor) -> int:
    """Which part of a weight this process has; 0 where it is not cut."""
    return distributed.rank() if is_cut(weight) else 0


def rows_of(whole: Tensor, weight: Tensor) -> Tensor:
    """Of something that belongs to a weight, row by row, this process's rows; all of it where that is not cut."""
    if not is_cut(weight) or not whole.ndim:
        return whole
    count = -(-len(weight) // distributed.world())  # as torch.chunk, and FSDP2, cut it
    return whole[distributed.rank() * count:][:count]


class Whole(Mapping[str, Tensor]):
    """Tensors of which every process has its rows; the first one gets them whole, on their device, when it asks.

    Args:
        rows: this process's, by name.
        weights: those that are cut, by the names of what belongs to them in ``rows``.
    """

    def __init__(self, rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]):
        self.rows, self.names = rows, list(rows)
        self.weights = {name: weights[name] for name, row in rows.items()
                        if row.ndim and name in weights and is_cut(weights[name])}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.weights:
            return self.rows[name]
        _said(self.names.index(name))
        return self._gathered(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def forms(self) -> dict[str, Tensor]:
        """Tensors without values, of the shapes and types of the whole ones."""
        return {name: torch.empty(len(self.weights[name]) if name in self.weights else row.shape[0], *row.shape[1:],
                                  dtype=row.dtype, device="meta") if row.ndim else row
                for name, row in self.rows.items()}

    def _gathered(self, name: str) -> Tensor | None:
        rows, length = self.rows[name], len(self.weights[name])
        padded = rows.new_zeros((-(-length // distributed.world()), *rows.shape[1:]))
        padded[:len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(distributed.world())] if distributed.rank() == 0 else None
        dist.gather(padded, parts)
        return torch.cat(parts)[:length] if parts else None

    def answer(self) -> None:
        """Give this process's rows of whatever the first one asks for, until it is done."""
        while (number := _said()) != _END:
            self._gathered(self.names[number])


@contextmanager
def whole(rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[Whole]:
    """Within, the first process reads tensors whole, see ``Whole``; the others help it first, and must read none.

    All processes must come here if any weight is cut.
    """
    found = Whole(rows, weights)
    if found.weights and distributed.rank() > 0:
        found.answer()
    try:
        yield found
    finally:
        if found.weights and distributed.rank() == 0:
            _said(_END)


def _said(number: int = 0) -> int:
    """What the first process says, in all of them."""
    shared = torch.tensor(number)
    dist.broadcast(shared, 0)
    return int(shared)
