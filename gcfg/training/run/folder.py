"""The folder of a run: settings, loss table and curve, previews, states, and how to use what came out."""

from __future__ import annotations

import csv
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from ... import files
from .. import settings_file
from ..settings import Settings, SettingsError

COLUMNS = ("step", "loss", "held_out_loss", "learning_rate", "gradient_norm")
"""What is recorded of a step; NaN where a value was not measured."""


class RunFolder:
    """Paths and files of one run.

    Args:
        path: where it is, or will be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.states, self.previews = self.path / "states", self.path / "previews"
        self.config, self.table, self.curve = (self.path / n for n in ("config.toml", "loss.csv", "loss.png"))
        self._identity = self.path / ".identity"

    @property
    def identity(self) -> str:
        """A random name of the run, which moves with its folder; empty before it begins."""
        return self._identity.read_text() if self._identity.exists() else ""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within, this process alone works on the run; what a killed one was writing is removed.

        Raises:
            RuntimeError: another process does.
            OSError: the folder cannot be written.
        """
        self._make()
        with self._writing():
            try:
                lock = FileLock(self.path / ".lock").acquire(timeout=0.0)
            except Timeout:
                raise RuntimeError(f"another process is training the run in {self.path}; wait for it or stop it, or "
                                   "choose another run_name.") from None
        with lock:
            for folder in (self.path, self.states, self.previews):
                files.clear_remains(folder)
            yield

    def _make(self) -> None:
        with self._writing():
            for folder in (self.path, self.states, self.previews):
                folder.mkdir(parents=True, exist_ok=True)

    def _writing(self) -> AbstractContextManager:
        return files.saying(f"the run's folder {self.path}",
                            "make it writable, free some space, or choose another output folder")

    def settings(self, form: type[Settings] = Settings) -> Settings | None:
        """The settings that the run was begun with, None for a new run."""
        return settings_file.read(self.config, form) if self.config.exists() else None

    def begin(self, settings: Settings) -> None:
        """Write the settings, paths as seen from here; SettingsError if they do not fit those the run was begun with.

        Files that the command line needs and these settings do not name stay as they were.
        """
        self._make()
        before = self.settings(type(settings))
        changed = settings.changed(before) if before else []
        if changed:
            raise SettingsError(f"the run '{settings.run_name}' was begun with other settings ({'; '.join(changed)}); "
                                "choose another run_name, or set these back.")
        paths = {name: self._relative(getattr(settings, name)) or (getattr(before, name) if before else "")
                 for name in settings.PATHS if name != "output"}
        with self._writing():
            files.write_text(self.config, replace(settings, output="", **paths).to_toml())
            if not self.identity:
                files.write_text(self._identity, uuid.uuid4().hex)

    def _relative(self, path: str) -> str:
        """A path as seen from the run's folder, so that a whole tree can move; several of them apart by commas."""
        if not path:
            return ""
        if "," in path and not Path(path).exists():
            return ",".join(self._relative(part.strip()) for part in path.split(","))
        try:
            return Path(os.path.relpath(Path(path).resolve(), self.path.resolve())).as_posix()
        except ValueError:  # another drive
            return Path(path).as_posix()

    def check_space(self, size: int, keep: int) -> str:
        """How much the states of a run take, in words.

        Args:
            size: bytes of one state.
            keep: how many are kept; one more lies there while it is written.

        Raises:
            OSError: the disk has not that much room left.
        """
        there = sum(path.stat().st_size for path in self.states.glob("step_*.state"))
        missing, free = size * (keep + 1) - there, shutil.disk_usage(self.states).free
        text = (f"a save takes {gigabytes(size)}, {gigabytes(size * (keep + 1))} with keep = {keep} and the one in "
                "writing")
        if missing > free:
            raise OSError(f"{text}, but only {gigabytes(free)} are free for {self.states}. Free some space, lower "
                          "keep, or choose a LoRA, a smaller optimizer, ema_precision bfloat16 or no average.")
        return text + f"; {gigabytes(free)} are free."

    def write_table(self, history: Tensor) -> None:
        """loss.csv of a whole history (steps, columns)."""
        rows = [COLUMNS, *map(_cells, history.tolist())]
        with self._writing():
            files.write_text(self.table, "".join(",".join(row) + "\n" for row in rows))

    def append(self, row: list[float]) -> None:
        """One more line of loss.csv."""
        with self._writing(), open(self.table, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(_cells(row))

    def write_curve(self, history: Tensor) -> None:
        """loss.png; ImportError where matplotlib is missing."""
        pixels = plot(history)
        with files.replacing(self.curve, durable=False) as file:
            Image.fromarray(pixels).save(file, format="png")

    def write_readme(self, text: str) -> None:
        files.write_text(self.path / "README.md", text)


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def plot(history: Tensor) -> np.ndarray:
    """The losses of a run, (H, W, 3) uint8: per step faintly, their running mean, and the held-out loss.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.68, 4.32), layout="constrained")
    axes = figure.subplots()
    step, loss, held_out = history[:, 0], history[:, 1], history[:, 2]
    measured = ~torch.isnan(held_out)
    axes.plot(step, loss, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(step, running_mean(loss), color="tab:blue", label="training loss (running mean)")
    if measured.any():
        axes.plot(step[measured], held_out[measured], color="tab:orange", marker=".", label="held-out loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    axes.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def running_mean(values: Tensor, weight: float = 0.05) -> Tensor:
    """m <- m + max(weight, 1 / n) (value - m) over the n values so far that were measured; NaN before the first."""
    means, mean, measured = [], float("nan"), 0
    for value in values.tolist():
        if value == value:
            measured += 1
            mean = value if measured == 1 else mean + max(weight, 1.0 / measured) * (value - mean)
        means.append(mean)
    return torch.tensor(means, dtype=values.dtype)


def _cells(row: list[float]) -> list[str]:
    return [str(int(row[0])), *("" if value != value else f"{value:.9g}" for value in row[1:])]
