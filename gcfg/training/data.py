"""A folder of pictures as latents on disk: encoded once per file, autoencoder and settings, read when needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import pictures
from .randomness import generator

Encode = Callable[[Tensor], Tensor]
"""Pictures (B, H, W, 3) in [0, 1] -> latents (B, C, h, w), before the model's own scaling."""
INDEX = "index.jsonl"


@dataclass(frozen=True)
class Source:
    """Which pictures, and how they are cut; see ``Settings``."""

    folder: str
    resolution: int = 512
    square: bool = False
    flip: bool = True


@dataclass(frozen=True)
class Latent:
    """One picture's latents on disk, float16, (1 or 2, C, h, w): as it is, and mirrored."""

    file: str
    path: str
    shape: tuple[int, int, int]

    def load(self, mirrored: bool) -> Tensor:
        """(C, h, w), float32."""
        copies = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(copies[min(int(mirrored), len(copies) - 1)], dtype=np.float32))


@dataclass(frozen=True)
class Latents:
    """The pictures that can be trained on, and why the other files cannot: (file, reason)."""

    found: tuple[Latent, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def report(self, count: int = 10) -> str:
        """What was skipped, for people."""
        lines = [f"{len(self.found)} pictures, {len(self.skipped)} files skipped"]
        lines += [f"  {file}: {reason}" for file, reason in self.skipped[:count]]
        more = len(self.skipped) - count
        return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))


def cache(source: Source, folder: str | Path, autoencoder: str, encode: Encode,
          progress: Callable[[int, int], None] = lambda done, total: None) -> Latents:
    """Encode what is not in the cache yet.

    Interrupting it loses nothing: every latent is on disk once it is made, and is found again.

    Args:
        source: the pictures.
        folder: where caches are kept; files of one autoencoder and setting get a folder of their own.
        autoencoder: a text that identifies it.
        encode: the autoencoder.
        progress: called with (files done, files in all), may raise to stop.

    Raises:
        ValueError: no usable picture.
    """
    name = hashlib.sha256(repr((autoencoder, source.resolution, source.square, source.flip)).encode()).hexdigest()[:16]
    place = Path(folder) / name
    place.mkdir(parents=True, exist_ok=True)
    known, paths = _read_index(place / INDEX), pictures.files(source.folder)
    root = Path(source.folder).expanduser()
    found, skipped = [], []
    with open(place / INDEX, "a", encoding="utf-8") as index:
        for number, path in enumerate(paths, 1):
            key, file = _key(path), path.relative_to(root).as_posix()
            entry = known.get(key)
            if entry is None or not _usable(entry, place / f"{key}.npy"):
                entry = _encode(path, place / f"{key}.npy", source, encode)
                index.write(json.dumps({"key": key, **entry}) + "\n")
                index.flush()
            if "error" in entry:
                skipped.append((file, entry["error"]))
            else:
                found.append(Latent(file, str(place / f"{key}.npy"), tuple(entry["shape"])))
            progress(number, len(paths))
    if not found:
        reasons = "; ".join(f"{file}: {reason}" for file, reason in skipped[:3])
        raise ValueError(f"no file in '{source.folder}' is a picture that can be trained on ({reasons}).")
    return Latents(tuple(found), tuple(skipped))


def _key(path: Path) -> str:
    """A name for a file as it is now: place, size, time of its last change."""
    state = path.stat()
    return hashlib.sha256(repr((str(path.resolve()), state.st_size, state.st_mtime_ns)).encode()).hexdigest()[:24]


def _encode(path: Path, target: Path, source: Source, encode: Encode) -> dict:
    """Write a picture's latents; its entry in the index."""
    try:
        picture = pictures.load(path, source.resolution, source.square)
    except pictures.BadPicture as error:
        return {"error": str(error)}
    copies = torch.stack([picture, picture.flip(1)] if source.flip else [picture])
    latents = torch.cat([encode(copy[None]) for copy in copies]).to("cpu", torch.float16)
    if not torch.isfinite(latents).all():
        return {"error": "the autoencoder gives values that are not finite"}
    store(target, latents.numpy())
    return {"shape": list(latents.shape[1:]), "bytes": target.stat().st_size}


def store(target: Path, values: np.ndarray) -> None:
    """Write an array in one step."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            np.save(file, values, allow_pickle=False)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _usable(entry: dict, path: Path) -> bool:
    """Whether an entry's file is whole."""
    if "error" in entry:
        return True
    try:
        return path.stat().st_size == entry["bytes"]
    except OSError:
        return False


def _read_index(path: Path) -> dict[str, dict]:
    """The last entry of every key; lines that were cut short count as unknown."""
    entries = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                entries[entry.pop("key")] = entry
            except (ValueError, KeyError, AttributeError):
                continue
    return entries


def split(latents: Sequence[Latent], held_out: int, seed: int) -> tuple[list[Latent], list[Latent]]:
    """Pictures to train on, and at most a tenth of them that are held out."""
    order = torch.randperm(len(latents), generator=generator(seed, "held out")).tolist()
    count = min(held_out, len(latents) // 10)
    return [latents[i] for i in sorted(order[count:])], [latents[i] for i in sorted(order[:count])]


class Order:
    """Which pictures each step sees: every epoch all of them in a new order, from the seed and the step alone.

    A batch holds pictures of one shape as far as an epoch has enough of that shape; what is left fills mixed batches,
    the last of which is completed from the epoch's beginning.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch: int, seed: int):
        self.shapes, self.batch, self.seed = shapes, batch, seed
        self.per_epoch = -(-len(shapes) // batch)
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
            whole = len(members) // self.batch * self.batch
            batches += [members[k:k + self.batch] for k in range(0, whole, self.batch)]
            rest += members[whole:]
        if rest:
            missing = -len(rest) % self.batch
            rest += (order * (missing // len(order) + 1))[:missing]
            batches += [rest[k:k + self.batch] for k in range(0, len(rest), self.batch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=source).tolist()]


def micro_batches(shapes: Mapping[int, tuple[int, ...]], size: int) -> list[list[int]]:
    """Places of a batch, given with their shapes, in groups of one shape and at most ``size``."""
    by_shape: dict[tuple, list[int]] = {}
    for place, shape in shapes.items():
        by_shape.setdefault(shape, []).append(place)
    return [members[k:k + size] for members in by_shape.values() for k in range(0, len(members), size)]
