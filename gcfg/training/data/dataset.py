"""A folder of pictures as latents on disk: encoded once per file, autoencoder and settings, read when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import files
from ..randomness import seed_of
from . import pictures
from .index import Index

Encode = Callable[[Tensor], Tensor]
"""Pictures (B, H, W, 3) in [0, 1] -> latents (B, C, h, w), before the model's own scaling."""


class LatentsGone(OSError):
    """Latents that cannot be read any more; the message names the picture."""


@dataclass(frozen=True)
class Source:
    """Which pictures, and how they are cut; see ``Settings``. ``others`` are its further resolutions."""

    folder: str
    resolution: int = 512
    square: bool = False
    flip: bool = True
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Latent:
    """One picture's latents on disk, float16, (1 or 2, C, h, w): as it is, and mirrored. A mask is one more channel.

    Attributes:
        file: of the picture, seen from its folder.
        path: of the latents.
        shape: (C, h, w).
        content: a hash of the picture's bytes, and of its mask's.
        masked: whether it has a mask.
        mirrored: how ``mask`` sees it.
        resolution: at which it was cut, see ``Source``.
        copies: what lies at ``path`` where that has been read, see ``read``.
    """

    file: str
    path: str
    shape: tuple[int, int, int]
    content: str = field(default="", kw_only=True)
    masked: bool = field(default=False, kw_only=True)
    mirrored: bool = field(default=False, kw_only=True)
    resolution: int = field(default=0, kw_only=True)
    copies: np.ndarray | None = field(default=None, kw_only=True, repr=False, compare=False)

    def load(self, mirrored: bool) -> Tensor:
        """(C, h, w), float32; LatentsGone if they cannot be read."""
        return self._copy(mirrored)[:self.shape[0]]

    def mask(self) -> Tensor:
        """(1, h, w) in [0, 1], the share of each cell that counts."""
        return self._copy(self.mirrored)[self.shape[0]:] if self.masked else torch.ones(1, *self.shape[1:])

    def read(self) -> np.ndarray:
        """What lies at ``path``; LatentsGone if it cannot be read."""
        try:
            copies = np.load(self.path, allow_pickle=False)
            channels, *size = self.shape
            if copies.dtype.kind != "f" or copies.shape[1:] != (channels + self.masked, *size) or not len(copies):
                raise ValueError(f"{copies.dtype} of shape {copies.shape}")
            return copies
        except Exception as error:  # of many kinds, tokenize's among them, where the file's head is damaged
            raise LatentsGone(f"the latents of '{self.file}' cannot be read any more ({error}).") from error

    def _copy(self, mirrored: bool) -> Tensor:
        copies = self.read() if self.copies is None else self.copies
        return torch.from_numpy(copies[min(int(mirrored), len(copies) - 1)].astype(np.float32))


@dataclass(frozen=True)
class Latents:
    """The pictures that can be trained on, and why the other files cannot: (file, reason)."""

    found: tuple[Latent, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def report(self, count: int = 10) -> str:
        """What was skipped, for people."""
        masked = len({latent.file for latent in self.found if latent.masked})
        lines = [f"{len({latent.file for latent in self.found})} pictures, "
                 f"{f'{masked} of them with masks, ' if masked else ''}{len(self.skipped)} files skipped"]
        lines += [f"  {file}: {reason}" for file, reason in self.skipped[:count]]
        more = len(self.skipped) - count
        return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))


def cache(source: Source, folder: str | Path, autoencoder: str, encode: Encode,
          progress: Callable[[int, int], None] = lambda done, total: None) -> Latents:
    """Encode what is not in the cache yet.

    Latents belong to a picture's content, not to its name: moved folders and copies on other machines are found again.
    Interrupting it loses nothing: every latent is on disk once it is made. What could not be used is tried again the
    next time. Latents that nobody asked for in sixty days are deleted.

    Args:
        source: the pictures, at all of its resolutions.
        folder: where caches are kept; files of one autoencoder and setting get a folder of their own.
        autoencoder: a text that identifies it and the precision it computes in.
        encode: the autoencoder.
        progress: called with (files done, files in all), may raise to stop.

    Raises:
        ValueError: no usable picture.
        OSError: latents cannot be written; those that are stay.
    """
    sizes = tuple(dict.fromkeys((source.resolution, *source.others)))
    parts = [_cache(replace(source, resolution=size), folder, autoencoder, encode, _part_of(progress, k, len(sizes)))
             for k, size in enumerate(sizes)]
    known = {file for file, _ in parts[0].skipped}
    return Latents(tuple(latent for part in parts for latent in part.found), parts[0].skipped + tuple(
        (f"{file} at {size}", reason) for size, part in zip(sizes[1:], parts[1:], strict=True)
        for file, reason in part.skipped if file not in known))


def _part_of(progress: Callable[[int, int], None], part: int, parts: int) -> Callable[[int, int], None]:
    """The progress of one of several parts of the same length."""
    return lambda done, total: progress(part * total + done, parts * total)


def _cache(source: Source, folder: str | Path, autoencoder: str, encode: Encode,
           progress: Callable[[int, int], None]) -> Latents:
    """``cache`` at one resolution."""
    name = hashlib.sha256(repr((autoencoder, source.resolution, source.square, source.flip)).encode()).hexdigest()[:16]
    place, paths = Path(folder) / name, pictures.files(source.folder)
    root = Path(source.folder).expanduser()
    found, skipped, masks = [], [], pictures.masks(paths)
    masked = {(path.parent, path.stem) for path in paths} & masks.keys()
    paths = [path for path in paths if path not in {masks[key] for key in masked}]
    with files.saying(f"the latents in {place}", "free some space, or choose another output folder, and start again: "
                                                 "what is encoded stays"), Index(place) as index:
        for number, path in enumerate(paths, 1):
            file = path.relative_to(root).as_posix()
            try:
                pictures.check_kind(path)
                if path in masks.values():
                    raise pictures.BadPicture("a mask, and its picture is not here")
                mask = masks.get((path.parent, path.stem))
                content = index.content_of(path) + (f"-{index.content_of(mask)}" if mask else "")
                entry = index.entry(content) or index.add(
                    content, _encode(path, mask, index.path(content), source, encode))
                found.append(Latent(file, str(index.path(content)), tuple(entry["shape"]), content=content,
                                    masked=mask is not None, resolution=source.resolution))
            except pictures.BadPicture as error:
                skipped.append((file, str(error)))
            progress(number, len(paths))
        index.clear()
    if not found:
        reasons = "; ".join(f"{file}: {reason}" for file, reason in skipped[:3])
        raise ValueError(f"no file in '{source.folder}' is a picture that can be trained on ({reasons}).")
    return Latents(tuple(found), tuple(skipped))


def _encode(path: Path, mask: Path | None, target: Path, source: Source, encode: Encode) -> dict:
    """Write a picture's latents, and its mask as one more channel; their entry in the index."""
    picture = pictures.load(path, source.resolution, source.square)
    copies = torch.stack([picture, picture.flip(1)] if source.flip else [picture])
    latents = torch.cat([encode(copy[None]) for copy in copies]).to("cpu", torch.float16)
    if not torch.isfinite(latents).all():
        raise pictures.BadPicture("the autoencoder gives values that are not finite; try it in float32 (--fp32-vae)")
    shape = list(latents.shape[1:])
    if mask is not None:
        drawn = pictures.load_mask(mask, path, source.resolution, source.square)
        drawn = torch.stack([drawn, drawn.flip(1)][:len(copies)]).movedim(-1, 1)
        latents = torch.cat([latents, F.adaptive_avg_pool2d(drawn, tuple(shape[1:])).half()], dim=1)
    store(target, latents.numpy())
    return {"shape": shape, "bytes": target.stat().st_size}


def masks_of(latents: Sequence[Latent], like: Tensor) -> Tensor | None:
    """The masks (B, 1, h, w) of pictures on the device of ``like``, None if no picture has one."""
    if not any(latent.masked for latent in latents):
        return None
    return torch.stack([latent.mask() for latent in latents]).to(like.device)


def store(target: Path, values: np.ndarray) -> None:
    """Write an array in one step."""
    with files.replacing(target, durable=False) as file:
        np.save(file, values, allow_pickle=False)


def split(latents: Sequence[Latent], held_out: int, seed: int, before: Sequence[str] = ()
          ) -> tuple[list[Latent], list[Latent]]:
    """Pictures to train on, and at most a tenth of them that are held out.

    Chosen by content, so that copies of one picture stay together and added pictures change nothing.

    Args:
        latents: all of them.
        held_out: how many at most.
        seed: of the choice.
        before: contents that were held out when the run began; none of the others are then.
    """
    contents = sorted({latent.content for latent in latents}, key=lambda content: seed_of(seed, "held out", content))
    chosen = set(before) or set(contents[:min(held_out, len(contents) // 10)])
    return ([latent for latent in latents if latent.content not in chosen],
            [latent for latent in latents if latent.content in chosen])


def repeated(latents: Sequence[Latent], times: Mapping[str, int]) -> list[Latent]:
    """Pictures as often as their sub-folder says; 0 leaves them out.

    Raises:
        ValueError: a folder that holds none of them, or nothing is left.
    """
    folders = {latent.file: {parent.as_posix() for parent in PurePosixPath(latent.file).parents} for latent in latents}
    unknown = [name for name in times if not any(name in found for found in folders.values())]
    if unknown:
        raise ValueError(f"repeats names '{unknown[0]}', and no picture lies in a sub-folder of that name.")
    found = [latent for latent in latents
             for _ in range(next((count for name, count in times.items() if name in folders[latent.file]), 1))]
    if not found:
        raise ValueError("repeats leaves no picture to train on.")
    return found
