"""Training from the command line, in a host that was started for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import folder_paths
import torch

from ...training.data.dataset import Source
from ...training.data.variants import Subject
from ...training.data.words import WordSettings
from ...training.run import distributed
from ...training.run.folder import RunFolder
from ...training.run.task import Watch
from ...training.settings import Settings, sizes_of
from ...training.subject_settings import SubjectSettings
from .images import latents_folder, prepare
from .subjects import train as subject
from .subjects import words
from .train import run_folder
from .train import train as train_model

T = TypeVar("T")


class TerminalWatch(Watch):
    """A run in a terminal.

    Args:
        interruption: has ``asked`` and ``patient``, see ``gcfg.train.Interruption``.
        progress_bar: makes a bar from a title; it is called with (done, total). None for a silent process.
    """

    def __init__(self, interruption, progress_bar: Callable | None):
        self.interruption, self.make, self.bar = interruption, progress_bar, None

    def begins(self) -> None:
        self.interruption.patient = True
        self.bar = self.make and self.make("training")  # whose time begins now, after all that was loaded

    def interrupted(self) -> bool:
        return self.interruption.asked

    def progress(self, step: int, steps: int, loss: float) -> None:
        if self.bar:
            self.bar(step, steps, loss)

    def tell(self, text: str) -> None:
        if self.make:
            print(text, flush=True)


def train(settings: Settings, interruption, progress_bar: Callable | None, place: Path | None) -> str:
    """Train a concept model as the node does; what there is now, for people.

    Args:
        settings: with a checkpoint.
        interruption, progress_bar: see ``TerminalWatch``.
        place: folder of a run that goes on; None for the one that the settings name.
    """
    base, clip, vae = load(settings.checkpoint)
    run, watch = RunFolder(place) if place else run_folder(settings), TerminalWatch(interruption, progress_bar)
    watch.tell(f"the run's folder is {run.path}")
    bar = progress_bar("encoding") if progress_bar else lambda done, total: None
    source = Source(settings.folder, settings.resolution, settings.crop == "square", settings.flip,
                    sizes_of(settings.resolutions))
    images = first_alone(lambda: prepare(source, vae, latents_folder(run.path.parent), bar))
    watch.tell(images.latents.report())
    with interruptible():
        made = train_model(base, clip, images, settings, watch, run)
    return (f"{made.step} steps are done: {run.path / settings.run_name}.safetensors is the concept model, README.md "
            "beside it says how to use it.")


def train_subject(settings: SubjectSettings, interruption, progress_bar: Callable | None, place: Path | None) -> str:
    """Train a subject as the node does; what there is now, for people. Arguments as of ``train``."""
    check_folder(settings, place)
    write_into(settings.models)
    base, clip, vae = load(settings.checkpoint)
    source = Subject(settings.folder, settings.masks, settings.resolution, settings.augment, settings.flip,
                     settings.variants)
    bar = progress_bar("encoding") if progress_bar else lambda done, total: None
    latents = Path(settings.output) / "concept_latents" if settings.output else None
    images = first_alone(lambda: subject.prepare(source, vae, latents, bar))
    with interruptible():
        made = subject.train(base, clip, images, settings, TerminalWatch(interruption, progress_bar))
    return f"{made.step} steps are done: README.md in {made.folder.path} says how to use the subject."


def tune_words(settings: WordSettings, interruption, progress_bar: Callable | None, place: Path | None) -> str:
    """Tune words as the node does; what there is now, for people. Arguments as of ``train``."""
    check_folder(settings, place)
    write_into(settings.models)
    folders, masks = ([part.strip() for part in text.split(",")] for text in (settings.folders, settings.mask_folders))
    sources = [Subject(folder, mask, count=1) for folder, mask in zip_longest(folders, masks, fillvalue="")]
    subjects = [subject.SubjectImages(source, (), None) for source in sources]
    for file in (settings.vision, settings.clip_file):
        if not Path(file).is_file():
            raise FileNotFoundError(f"the file '{file}' is not there; 'vision' must name the vision model of CLIP-L, "
                                    "'clip_file' its full text encoder.")
    base, clip, _ = load(settings.checkpoint)
    with torch.inference_mode():
        vision = comfy.clip_vision.load(settings.vision)
    with interruptible():
        made = words.tune(clip, vision, words.read_projection(settings.clip_file), subjects, settings,
                          TerminalWatch(interruption, progress_bar))
    return f"{made.step} steps are done: README.md in {made.folder.path} says how to use the words."


def check_folder(settings: SubjectSettings | WordSettings, place: Path | None) -> None:
    """Refuse a run that goes on in a folder of another name than its own (ValueError)."""
    if place and place.name != settings.run_name:
        raise ValueError(f"the folder {place} holds the run '{settings.run_name}'; give it that name again.")


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, an interruption of the host's sampler, in a preview, is one of this process."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        raise KeyboardInterrupt from None


def write_into(models: str) -> None:
    """Let embeddings and LoRAs be written into, and read from, a folder of models; nothing changes if it is empty."""
    for kind in ("embeddings", "loras") if models else ():
        folder = Path(models) / kind
        folder.mkdir(parents=True, exist_ok=True)
        folder_paths.add_model_folder_path(kind, str(folder), is_default=True)


def load(checkpoint: str) -> tuple:
    """MODEL, CLIP and VAE of a whole checkpoint."""
    with torch.inference_mode():
        base, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            checkpoint, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    if clip is None or vae is None:
        raise ValueError(f"'{checkpoint}' holds no text encoder or no autoencoder; name a whole checkpoint.")
    return base, clip, vae


def first_alone(work: Callable[[], T]) -> T:
    """What the first process makes and keeps on disk; the others wait, and then find it there."""
    if distributed.rank() > 0:
        distributed.wait()
    made = work()
    if distributed.rank() == 0:
        distributed.wait()
    return made
