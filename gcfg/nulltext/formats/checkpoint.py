"""Files with weights, read without trust, and written so that at every moment either the old or the new one is whole.

Nothing is memory-mapped: a file that is cut short while it is read gives an error, where a mapping would end the
process. Nothing is unpickled but plain tensors.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ... import files

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
HEADER_LIMIT = 100_000_000
"""Bytes that a safetensors header may have, as in the reference implementation."""


class CheckpointError(ValueError):
    """A file that cannot be used; the message says why and what to do."""


def read(path: str | os.PathLike, roots: Iterable[str | os.PathLike] | None = None
         ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint, on the CPU in their own types, and its metadata (empty for pickles).

    Args:
        path: a safetensors file, or a torch pickle, of which only plain tensors are ever unpickled.
        roots: folders in which the file must really lie, links resolved; None allows any place.

    Raises:
        CheckpointError: no such file, not a regular file, outside ``roots``, unknown type, broken, or not only tensors.
    """
    place = locate(path, roots)
    name, kind = place.name, Path(path).suffix.lower()
    if kind not in SAFETENSORS + PICKLES:
        raise CheckpointError(f"{name}: unknown file type; concept models are .safetensors, or .bin, .pt and .ckpt of "
                              "plain tensors.")
    try:
        with open(place, "rb") as file:
            return _read_safetensors(file, name) if kind in SAFETENSORS else (_read_pickle(file, name), {})
    except OSError as error:
        raise CheckpointError(f"{name}: the file could not be read ({error.strerror or error}); it may have been moved "
                              "or be on a drive that is gone.") from error


def locate(path: str | os.PathLike, roots: Iterable[str | os.PathLike] | None = None) -> Path:
    """The regular file behind ``path``, links resolved, and refused unless it lies in one of ``roots``."""
    name = Path(path).name
    try:
        place = Path(path).resolve(strict=True)
        mode = place.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{name}: there is no such file; refresh the list (press R) and choose again.") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise CheckpointError(f"{name}: this is {what}; choose the file with the weights.")
    if roots is not None and not any(place.is_relative_to(Path(root).resolve()) for root in roots):
        raise CheckpointError(f"{name}: the link leads out of the model folders; copy the file there, or add its "
                              "folder to extra_model_paths.yaml.")
    return place


def write(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one step: it appears complete, or the old one stays (OSError if it cannot be)."""
    files.clear_remains(Path(path).parent, older_than=3600.0)
    files.write_tensors(path, tensors, metadata)


def _read_pickle(file: BinaryIO, name: str) -> dict[str, Tensor]:
    """The tensors of a torch pickle by the restricted unpickler; the usual wrapper around a state dict is opened."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):  # CVE-2025-32434
        raise CheckpointError(f"{name}: torch {torch.__version__} cannot read pickled weights safely; use a "
                              ".safetensors file or update torch to 2.6 or newer.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken pickle can fail in any way; none of its code has run
        raise CheckpointError(f"{name}: refused, because it is damaged or holds more than plain tensors (a pickle can "
                              "run programs); ask its author for a .safetensors file.") from error
    if isinstance(content, dict):
        nested = [value for value in content.values() if isinstance(value, dict)]
        content = content.get("state_dict", nested[0] if len(content) == len(nested) == 1 else content)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{name}: this holds no named weights; choose the file with the UNet's state dict.")
    tensors = {key: value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{name}: '{key}' is a sparse, quantized or empty placeholder tensor; save the "
                                  "model with ordinary weights.")
    return tensors


def _read_safetensors(file: BinaryIO, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Header and tensors of an open safetensors file, everything checked against the size of the file."""
    entries, metadata, start = read_header(file, name)
    return {key: read_tensor(file, entry, start, name) for key, entry in entries.items()}, metadata


def read_header(file: BinaryIO, name: str) -> tuple[dict[str, dict], dict[str, str], int]:
    """The entries of an open safetensors file, its metadata, and where the data begin.

    Afterwards ``read_tensor`` is safe for every entry: all lie in the file, side by side, as large as their types say.

    Raises:
        CheckpointError: the file is broken.
    """
    size = os.fstat(file.fileno()).st_size
    entries, metadata, start = _parse_header(file, size, name)
    position = 0
    for key, entry in sorted(entries.items(), key=lambda item: (_offsets(item[1], name), item[0])):
        begin, end = _offsets(entry, name)
        dtype, shape = files.TYPES.get(entry.get("dtype")), entry.get("shape")
        if dtype is None or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise _broken(name, f"the entry '{key}' has no known type and shape")
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize or start + end > size:
            raise _broken(name, f"'{key}' lies outside the file or overlaps another tensor, so the file was cut short "
                                "or altered")
        position = end
    if start + position != size:
        raise _broken(name, "it holds bytes that belong to no tensor")
    return entries, metadata, start


def read_tensor(file: BinaryIO, entry: Mapping, start: int, name: str) -> Tensor:
    """One tensor of an open safetensors file, for an entry of ``read_header``."""
    tensor = torch.empty(entry["shape"], dtype=files.TYPES[entry["dtype"]])
    file.seek(start + entry["data_offsets"][0])
    _fill(file, tensor, name)
    return tensor


def _parse_header(file: BinaryIO, size: int, name: str) -> tuple[dict[str, dict], dict[str, str], int]:
    """The entries, the metadata and where the data begin."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(HEADER_LIMIT, size - 8):
        raise _broken(name, f"its header claims {length} bytes, but the file has {size}")
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise _broken(name, "its header is unreadable") from error
    plain = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not plain or not all(isinstance(entry, dict) for entry in header.values()):
        raise _broken(name, "its header does not describe tensors")
    return header, metadata, 8 + length


def _offsets(entry: dict, name: str) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise _broken(name, "its header does not say where the tensors are")
    return offsets[0], offsets[1]


def _fill(file: BinaryIO, tensor: Tensor, name: str) -> None:
    """Read the bytes of one tensor from the file straight into its memory."""
    view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    while view.nbytes:
        count = file.readinto(view)
        if not count:
            raise _broken(name, "it became shorter while it was read")
        view = view[count:]


def _broken(name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{name}: this safetensors file is broken: {why}; download or save it again.")
