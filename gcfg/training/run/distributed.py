"""Several processes on one run (torchrun): each takes its share of every batch, gradients are summed over all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ... import environment

PATIENCE = timedelta(hours=48)
"""How long processes wait for the first one, which encodes the pictures."""


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world() -> int:
    return dist.get_world_size() if active() else 1


@contextmanager
def joined(cuda: bool) -> Iterator[None]:
    """Within, this process belongs to those that torchrun started; without torchrun nothing changes."""
    if environment.processes() == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Until all processes are here."""
    if active():
        dist.barrier()


def any_of(flag: bool, device: torch.device) -> bool:
    """True everywhere if it is true in one process."""
    if not active():
        return flag
    shared = torch.tensor(float(flag), device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared)


def total(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if active():
        dist.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over all processes; a process without samples adds zero."""
    if not active():
        return
    works = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        works.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in works:
        work.wait()
