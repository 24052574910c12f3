"""The whole state of a run on disk: written in one step, checked when read, the newest whole one wins."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ... import files as atomic
from ...nulltext.formats import checkpoint
from ..weights.shards import Whole

VERSION = "2"
_NAME = re.compile(r"step_(\d{8})\.state")
_PARTS = ("parameters", "average", "optimizer", "features")


class StateError(ValueError):
    """A state that cannot be read; the message says why."""


@dataclass
class State:
    """All that decides how a run goes on. Noise and order follow from the seed and the step, see ``randomness``.

    Attributes:
        step: optimizer steps done.
        parameters, average, optimizer: see ``Optimizer`` and ``Average``.
        features: the null-text features, so that they are measured once.
        history: a row a step, see ``loop.COLUMNS``, (step, columns) float64.
        notes: plain values: settings, base, halved micro-batch.
    """

    step: int
    parameters: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    history: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    notes: Mapping[str, object] = field(default_factory=dict)

    def weights(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that tensors of a state belong to, by the names of these."""
        owners = {f"optimizer/{key}": parameters[name] for key in self.optimizer
                  if (name := key.rpartition("/")[0]) in parameters}
        return owners | {f"{part}/{name}": parameters[name] for part in ("parameters", "average")
                         for name in getattr(self, part)}

    def tensors(self) -> dict[str, Tensor]:
        """All of it by "<part>/<name>"."""
        found = {f"{part}/{name}": value for part in _PARTS for name, value in getattr(self, part).items()}
        return found | {"history": self.history}


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08}.state"


def save(folder: Path, state: State, keep: int = 2, whole: Whole | None = None) -> Path:
    """Write a state beside the earlier ones, then delete all but the newest ``keep``; OSError leaves those as they are.

    The file is a safetensors file with a CRC-32 of all that is in it.

    Args:
        whole: the tensors of the state, where it has but this process's rows of them.
    """
    path = path_of(folder, state.step)
    metadata = {"version": VERSION, "step": str(state.step), "notes": json.dumps(dict(state.notes))}
    tensors, read = (whole.forms(), whole.__getitem__) if whole else (state.tensors(), None)
    atomic.write_tensors(path, tensors, metadata, checked=True, read=read)
    for old in files(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


class _Stored(Mapping):
    """The tensors of one part of a state, each read from the file when it is asked for: never all of them at once."""

    def __init__(self, path: Path, entries: Mapping[str, dict], start: int):
        self.path, self.entries, self.start = path, entries, start

    def __getitem__(self, name: str) -> Tensor:
        with open(self.path, "rb") as file:
            return checkpoint.read_tensor(file, self.entries[name], self.start, self.path.name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def load(path: Path) -> State:
    """A state whose tensors are read, to the CPU, when they are asked for; StateError if it is damaged."""
    try:
        with open(path, "rb") as file:
            entries, metadata, start = checkpoint.read_header(file, path.name)
            if metadata.get("version") != VERSION:
                raise StateError(f"{path.name} was written by another version of this pack "
                                 f"({metadata.get('version')}, this one reads {VERSION})")
            if atomic.crc_of(file, metadata["crc"]) != int(metadata["crc"]):
                raise StateError(f"{path.name} is damaged: its checksum is wrong")
            history = checkpoint.read_tensor(file, entries.pop("history"), start, path.name)
        step, notes = int(metadata["step"]), json.loads(metadata["notes"])
    except (OSError, KeyError, ValueError) as error:
        raise error if isinstance(error, StateError) else StateError(f"{path.name} is damaged: {error}") from error
    parts: dict[str, dict[str, dict]] = {part: {} for part in _PARTS}
    for key, entry in entries.items():
        part, _, name = key.partition("/")
        parts[part][name] = entry
    stored = {part: _Stored(path, own, start) for part, own in parts.items()}
    return State(step, history=history, notes=notes, **stored)


def latest(folder: Path) -> State | None:
    """The newest state that is whole, None if there is none; damaged ones are passed over, and said so.

    Raises:
        StateError: there are states, and none of them is whole. A run must not begin again without a word.
    """
    failures = []
    for path in reversed(files(folder)):
        try:
            return load(path)
        except StateError as error:
            failures.append(str(error))
            logging.warning("GCFG: %s; going back to the state before it.", error)
    if failures:
        raise StateError(f"no state of this run can be read ({'; '.join(failures)}). Put back a copy of {folder}, or "
                         "delete that folder to begin at step 1 again.")
    return None


def files(folder: Path) -> list[Path]:
    """The state files, oldest first."""
    return sorted(path for path in folder.glob("step_*.state") if _NAME.fullmatch(path.name))


def size(tensors: Mapping[str, Tensor]) -> int:
    """About how many bytes a file of them has."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def broken(state: State) -> str | None:
    """The name of a tensor with values that are not finite, None if there is none; the history may have gaps."""
    for name, tensor in state.tensors().items():
        if name != "history" and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
