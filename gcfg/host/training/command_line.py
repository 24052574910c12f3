"""Training from the command line, in a host that was started for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.sd
import folder_paths
import torch

from ...training import distributed
from ...training.data import Source
from ...training.settings import Settings
from ...training.task import Watch
from .images import ConceptImages, prepare
from .train import train as train_model


class TerminalWatch(Watch):
    """A run in a terminal.

    Args:
        interruption: has ``asked``.
        progress_bar: makes a bar from a title; it is called with (done, total). None for a silent process.
    """

    def __init__(self, interruption, progress_bar: Callable | None):
        self.interruption, self.bar = interruption, progress_bar and progress_bar("training")

    def interrupted(self) -> bool:
        return self.interruption.asked

    def progress(self, step: int, steps: int, loss: float) -> None:
        if self.bar:
            self.bar(step, steps, loss)


def train(settings: Settings, interruption, progress_bar: Callable | None) -> str:
    """Train as the node does; the run's folder."""
    with torch.inference_mode():
        base, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            settings.checkpoint, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    if clip is None or vae is None:
        raise ValueError(f"'{settings.checkpoint}' holds no text encoder or no autoencoder; name a whole checkpoint.")
    if distributed.rank() > 0:
        distributed.wait()  # the first process encodes, the others then find everything on disk
    images = encode(settings, vae, progress_bar)
    if distributed.rank() == 0:
        distributed.wait()
    made = train_model(base, clip, images, settings, TerminalWatch(interruption, progress_bar))
    return str(made.folder.path)


def encode(settings: Settings, vae, progress_bar: Callable | None) -> ConceptImages:
    """The pictures of the settings."""
    bar = progress_bar("encoding") if progress_bar else lambda done, total: None
    source = Source(settings.folder, settings.resolution, settings.crop == "square", settings.flip)
    return prepare(source, vae, Path(settings.output) / "concept_latents" if settings.output else None, bar)
