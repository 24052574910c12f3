"""The tiny models from a folder, trained first where they are missing. One way for the demo and for the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from . import store, training
from .metrics import Classifier
from .model import Denoiser
from .training import ProgressBar

Bars = Callable[[str], ProgressBar]
"""A progress bar for a label."""


def trained(folder: Path, name: str, make: Callable[[], nn.Module], fresh: bool) -> nn.Module:
    """A model from its file; made and written first if the file is missing or ``fresh``. Always as the file has it."""
    if fresh or not store.path_of(folder, name).is_file():
        store.save(make(), folder, name)
    return store.load(folder, name)


def denoisers(folder: Path, seed: int, bars: Bars, fresh: bool = False) -> dict[str, Denoiser]:
    """Base, captioned fine-tune and null-text concept model of a training seed."""
    def tuned(captioned: bool, label: str) -> Callable[[], Denoiser]:
        return lambda: training.fine_tune(base, seed, captioned, bars(label))

    base = trained(folder, "base", lambda: training.train_base(seed, bars("base")), fresh)
    return {"base": base, "tuned": trained(folder, "tuned", tuned(True, "tuned with captions"), fresh),
            "concept": trained(folder, "concept", tuned(False, "null-text concept"), fresh)}


def classifier(folder: Path, bars: Bars, fresh: bool = False) -> Classifier:
    """The classifier, the same for every training seed."""
    return trained(folder, store.CLASSIFIER, lambda: training.train_classifier(0, bars("classifier")), fresh)
