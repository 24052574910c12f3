"""The whole state of a run on disk: written in one step, checked when read, the newest whole one wins."""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..nulltext import checkpoint

VERSION = "1"
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

    def tensors(self) -> dict[str, Tensor]:
        found = {f"{part}/{name}": value for part in _PARTS for name, value in getattr(self, part).items()}
        return found | {"history": self.history}


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08}.state"


def save(folder: Path, state: State, keep: int = 2) -> Path:
    """Write a state beside the earlier ones, then delete all but the newest ``keep``; OSError leaves those as they are.

    The file is a safetensors file with a CRC-32 of all its tensors.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors().items()}
    metadata = {"version": VERSION, "step": str(state.step), "crc": str(checksum(tensors)),
                "notes": json.dumps(dict(state.notes))}
    path = path_of(folder, state.step)
    checkpoint.write(path, tensors, metadata)
    for old in files(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> State:
    """A state on the CPU; StateError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        if metadata.get("version") != VERSION:
            raise StateError(f"{path.name} was written by another version of this pack ({metadata.get('version')})")
        whole = int(metadata["crc"]) == checksum(tensors)
        step, notes = int(metadata["step"]), json.loads(metadata["notes"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise error if isinstance(error, StateError) else StateError(f"{path.name} is damaged: {error}") from error
    if not whole:
        raise StateError(f"{path.name} is damaged: its checksum is wrong")
    history = tensors.pop("history")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    return State(step, history=history, notes=notes, **parts)


def latest(folder: Path) -> State | None:
    """The newest state that is whole, None if there is none; damaged ones are passed over, and said so."""
    for path in reversed(files(folder)):
        try:
            return load(path)
        except StateError as error:
            logging.warning("GCFG: %s; going back to the state before it.", error)
    return None


def files(folder: Path) -> list[Path]:
    """The state files, oldest first."""
    return sorted(path for path in folder.glob("step_*.state") if _NAME.fullmatch(path.name))


def clear_remains(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for path in folder.glob(".step_*.part"):
        path.unlink(missing_ok=True)


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over names and bytes, in the order of the names."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        flat = tensors[name].contiguous().reshape(-1)
        if flat.numel():
            crc = zlib.crc32(memoryview(flat.view(torch.uint8).numpy()), crc)
    return crc
