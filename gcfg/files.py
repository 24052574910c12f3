"""Files that are replaced in one step: at every moment the old or the new one is whole, with a new file's usual rights.

What is not finished lies beside its target as ``.<name>.<process>.part``. A process that was killed leaves that behind;
``clear_remains`` removes it at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
"""Types of safetensors files."""
_NAMES = {kind: name for name, kind in TYPES.items()}
_NO_CRC = "0" * 10


@contextmanager
def replacing(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends without an error.

    Args:
        path: its folders are made.
        durable: wait until it has reached the disk, so that a power cut leaves the old or the new file too.

    Raises:
        OSError: it could not be written; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable and os.name == "posix":
        with contextlib.suppress(OSError):  # some file systems cannot flush folders; the file itself is safe by now
            _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def saying(what: str, remedy: str) -> Iterator[None]:
    """Within, an error of the operating system is a sentence: ``what`` cannot be written, why, and a ``remedy``."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{what} cannot be written ({error.strerror or error}); {remedy}.") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file in one step."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def clear_remains(folder: str | os.PathLike, older_than: float = 0.0) -> None:
    """Remove what killed processes were writing in a folder.

    Args:
        folder: without its sub-folders.
        older_than: seconds since the last byte was written; for folders into which another process may write now.
    """
    for path in Path(folder).glob(".*.part"):
        with contextlib.suppress(OSError):  # gone by now, or not ours to remove
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                  checked: bool = False, read: Callable[[str], Tensor] | None = None) -> None:
    """Write a safetensors file in one step, tensor by tensor, so that no second copy of all weights is needed.

    The library's own writer goes through a temporary file that a killed process leaves behind under a random name, and
    that nobody but its owner may read.

    Args:
        tensors: on any device.
        checked: add "crc" to the metadata, the CRC-32 of header and tensors, see ``crc_of``.
        read: gives a tensor by its key, where those of ``tensors`` have nothing but their shape and type.
    """
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))  # every tensor aligned to its type
    entries, position = {}, 0
    for key in order:
        tensor = tensors[key]
        size = tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [position, position + size]}
        position += size
    metadata = dict(metadata) | ({"crc": _NO_CRC} if checked else {})
    with replacing(path) as file:
        header = _header(entries, metadata)
        file.write(header)
        crc = zlib.crc32(header[8:])
        for key in order:
            content = (read or tensors.__getitem__)(key).detach().cpu().contiguous().reshape(-1)
            if content.numel():
                view = memoryview(content.view(torch.uint8).numpy())
                file.write(view)
                crc = zlib.crc32(view, crc)
        if checked:
            file.seek(0)
            file.write(_header(entries, metadata | {"crc": f"{crc:010}"}))


def _header(entries: Mapping[str, dict], metadata: Mapping[str, str]) -> bytes:
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def crc_of(file: BinaryIO, stated: str) -> int:
    """The CRC-32 of an open safetensors file that states this CRC, as it was when ``write_tensors`` wrote it."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length)
    crc = zlib.crc32(header.replace(f'"crc":"{stated}"'.encode(), f'"crc":"{_NO_CRC}"'.encode(), 1))
    while block := file.read(1 << 22):
        crc = zlib.crc32(block, crc)
    return crc
