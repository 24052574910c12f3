"""What is known of the files of a folder and of the latents made from them, kept beside these latents."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from ... import files
from . import pictures

INDEX = "index.jsonl"
UNUSED = 60 * 86400.0
"""Seconds after which latents that no run asked for are deleted."""


class Index:
    """Which content a file has, and which latents a content has, in a file of JSON lines; the last line of a key wins.

    Args:
        place: folder of the latents.
    """

    def __init__(self, place: Path):
        self.place = place
        self.known: dict[str, dict] = {}

    def __enter__(self) -> Index:
        self.place.mkdir(parents=True, exist_ok=True)
        files.clear_remains(self.place, older_than=3600.0)
        self.file = open(self.place / INDEX, "a+b", buffering=0)
        self.file.seek(0)
        text = self.file.read().decode("utf-8", errors="replace")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.known[entry.pop("key")] = entry
            except (ValueError, KeyError, AttributeError, TypeError):  # cut short
                continue
        self._cut = not ("\n" + text).endswith("\n")
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def path(self, content: str) -> Path:
        return self.place / f"{content}.npy"

    def add(self, key: str, entry: dict) -> dict:
        self.known[key] = entry
        line = ("\n" if self._cut else "") + json.dumps({"key": key, **entry}) + "\n"
        self._cut = self.file.write(line.encode()) < len(line)  # json is ASCII
        return entry

    def content_of(self, path: Path) -> str:
        """A hash of a file's bytes, read again only when place, size or time of the file have changed."""
        try:
            state = path.stat()
            place = repr((str(path.resolve()), state.st_size, state.st_mtime_ns))
            key = hashlib.sha256(place.encode()).hexdigest()[:24]
            known = self.known.get(key, {}).get("content")
            if known:
                return known
            with open(path, "rb") as file:
                digest = hashlib.blake2b(digest_size=12)
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise pictures.BadPicture(f"it cannot be read ({error.strerror or error})") from error
        return self.add(key, {"content": digest.hexdigest()})["content"]

    def entry(self, content: str) -> dict | None:
        """What is known of latents that are whole; they count as used from now on."""
        entry, path = self.known.get(content), self.path(content)
        try:
            if entry is None or path.stat().st_size != entry["bytes"]:
                return None
            os.utime(path)
        except OSError:
            return None
        return entry

    def clear(self) -> None:
        """Delete latents that were not used for long."""
        for path in self.place.glob("*.npy"):
            if time.time() - path.stat().st_mtime > UNUSED:
                path.unlink(missing_ok=True)
