"""Which pictures a step sees, and their latents, read while the step before is computed, with noise and levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from ..losses.objectives import logit_normal, offset_noise
from ..randomness import draw, generator
from ..run import distributed
from ..settings import Settings
from .dataset import Latent

IN_MEMORY = 2**28
"""Bytes of latents that stay in memory once they are read; others are read from disk whenever they are needed."""
Samples = tuple[Tensor, Tensor, Tensor, list[Latent]]
"""Latents (B, C, h, w), noise, levels (B,), and the B pictures."""


class Order:
    """Which pictures each step sees: every epoch all of them in a new order, from the seed and the step alone.

    A batch holds pictures of one shape as far as an epoch has enough of that shape; what is left fills mixed batches,
    the last of which is completed from the epoch's beginning.

    Args:
        shapes: of the pictures.
        batch: pictures of a step.
        seed: of the order.
        mixed: whether there are mixed batches; otherwise what is left of a shape is completed from its own pictures.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch: int, seed: int, mixed: bool = True):
        self.shapes, self.batch, self.seed, self.mixed = shapes, batch, seed, mixed
        counts = [len(shapes)] if mixed else Counter(shapes).values()
        self.per_epoch = sum(-(-count // batch) for count in counts)
        self._epoch, self._batches = -1, []

    def at(self, step: int) -> list[int]:
        """The pictures of a step, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._make(epoch)
        return self._batches[place]

    def _make(self, epoch: int) -> list[list[int]]:
        source = generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.shapes), generator=source).tolist()
        batches, rest = [], []
        by_shape: dict[tuple, list[int]] = {}
        for i in order:
            by_shape.setdefault(self.shapes[i], []).append(i)
        for members in by_shape.values():
            if not self.mixed:
                members += self._missing(members, members)
            whole = len(members) // self.batch * self.batch
            batches += [members[k:k + self.batch] for k in range(0, whole, self.batch)]
            rest += members[whole:]
        if rest:
            rest += self._missing(rest, order)
            batches += [rest[k:k + self.batch] for k in range(0, len(rest), self.batch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=source).tolist()]

    def _missing(self, members: Sequence[int], others: Sequence[int]) -> list[int]:
        """As many of the others as fill the last batch of these members."""
        return list(islice(cycle(others), -len(members) % self.batch))


def micro_batches(shapes: Mapping[int, tuple[int, ...]], size: int) -> list[list[int]]:
    """Places of a batch, given with their shapes, in groups of one shape and at most ``size``."""
    by_shape: dict[tuple, list[int]] = {}
    for place, shape in shapes.items():
        by_shape.setdefault(shape, []).append(place)
    return [members[k:k + size] for members in by_shape.values() for k in range(0, len(members), size)]


class Loader:
    """The samples of every step: the same whatever the micro-batch is, and however often a run was interrupted.

    Latents of the next step are read in a thread while this step is computed. ``IN_MEMORY`` bytes of them are kept for
    the epochs to come.

    Args:
        latents: pictures to train on.
        settings: batch, seed, flip, noise offset.
        device: where samples are used.
    """

    def __init__(self, latents: Sequence[Latent], settings: Settings, device: torch.device):
        self.latents, self.settings, self.device = latents, settings, device
        self.order = Order([latent.shape for latent in latents], settings.batch, settings.seed,
                           mixed=not settings.fused_backward)  # which updates weights after every micro-batch
        self._thread = ThreadPoolExecutor(1, "GCFG loader")
        self._reading: dict[int, dict[str, Future]] = {}
        self._kept: dict[str, np.ndarray] = {}
        self._room = IN_MEMORY

    def files(self, step: int, places: Iterable[int]) -> list[str]:
        """The pictures at places of a step's batch."""
        batch = self.order.at(step)
        return [self.latents[batch[place]].file for place in places]

    def groups(self, step: int, size: int, rank: int | None = None) -> list[list[int]]:
        """The places of a step's batch that a process (this one) computes, in micro-batches of at most ``size``."""
        batch = self.order.at(step)
        mine = range(distributed.rank() if rank is None else rank, len(batch), distributed.world())
        return micro_batches({place: self.latents[batch[place]].shape for place in mine}, size)

    def samples(self, step: int, group: Sequence[int]) -> Samples:
        """The samples of a micro-batch; LatentsGone if they cannot be read."""
        batch = self.order.at(step)
        self._reading = {at: self._reading[at] if at in self._reading else self._read(at) for at in (step, step + 1)}
        rows = [self._sample(step, place, self.latents[batch[place]]) for place in group]
        x0, noise, level = (torch.stack([row[k] for row in rows]).to(self.device) for k in range(3))
        return x0, noise, level, [row[3] for row in rows]

    def _read(self, step: int) -> dict[str, Future]:
        """Begin to read what a step needs of this process and is not in memory, by path."""
        mine = {self.latents[i].path: self.latents[i] for i in
                self.order.at(step)[distributed.rank()::distributed.world()]}
        return {path: self._thread.submit(mine[path].read) for path in mine.keys() - self._kept.keys()}

    def _sample(self, step: int, place: int, latent: Latent) -> tuple[Tensor, Tensor, Tensor, Latent]:
        s = self.settings
        level, flip, noise, offset = draw(latent.shape, s.seed, "sample", step, place)
        mirrored = s.flip and flip < 0.5
        seen = replace(latent, mirrored=mirrored, copies=self._copies(step, latent.path))
        level = torch.tensor(level)
        if s.timesteps == "logit-normal":
            level = logit_normal(level)
        return seen.load(mirrored), offset_noise(noise, offset, s.noise_offset), level, seen

    def _copies(self, step: int, path: str) -> np.ndarray:
        """The latents of a picture, as it is and mirrored."""
        copies = self._kept.get(path)
        if copies is None:
            copies = self._reading[step][path].result()
            if copies.nbytes <= self._room:
                self._room -= copies.nbytes
                self._kept[path] = copies
        return copies

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
