"""The folder of a run: settings, loss table and curve, previews, states, and how to use what came out."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import settings as settings_file
from .settings import Settings, SettingsError

COLUMNS = ("step", "loss", "held_out_loss", "learning_rate", "gradient_norm")
"""What is recorded of a step; NaN where a value was not measured."""


class RunFolder:
    """Paths and files of one run.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.states, self.previews = self.path / "states", self.path / "previews"
        for folder in (self.path, self.states, self.previews):
            folder.mkdir(parents=True, exist_ok=True)
        self.config, self.table, self.curve = (self.path / n for n in ("config.toml", "loss.csv", "loss.png"))

    def settings(self, form: type[Settings] = Settings) -> Settings | None:
        """The settings that the run was begun with, None for a new run."""
        return settings_file.read(self.config, form) if self.config.exists() else None

    def begin(self, settings: Settings) -> None:
        """Write the settings; SettingsError if the run was begun with others that must not change."""
        before = self.settings(type(settings))
        changed = settings.changed(before) if before else []
        if changed:
            raise SettingsError(f"the run '{settings.run_name}' was begun with other settings ({'; '.join(changed)}); "
                                "choose another run_name, or set these back.")
        replace_text(self.config, settings.to_toml())

    def write_table(self, history: Tensor) -> None:
        """loss.csv of a whole history (steps, columns)."""
        with open(self.table, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *map(_cells, history.tolist())])

    def append(self, row: list[float]) -> None:
        """One more line of loss.csv."""
        with open(self.table, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(_cells(row))

    def write_curve(self, history: Tensor) -> None:
        """loss.png; nothing where matplotlib is missing."""
        try:
            pixels = plot(history)
        except ImportError:
            return
        temporary = self.curve.with_name(f".{self.curve.name}.part")
        Image.fromarray(pixels).save(temporary, format="png")
        os.replace(temporary, self.curve)

    def write_readme(self, text: str) -> None:
        replace_text(self.path / "README.md", text)


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
    """m <- m + max(weight, 1 / n) (value - m), over values that are finite."""
    means, mean = [], 0.0
    for n, value in enumerate(values.tolist(), 1):
        if value == value:
            mean += max(weight, 1.0 / n) * (value - mean)
        means.append(mean)
    return torch.tensor(means, dtype=values.dtype)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _cells(row: list[float]) -> list[str]:
    return [str(int(row[0])), *("" if value != value else f"{value:.9g}" for value in row[1:])]
