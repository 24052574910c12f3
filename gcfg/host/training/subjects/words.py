"""Words tuned contrastively before any diffusion model sees them: CLIF's first stage (arXiv 2405.06914)."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....nulltext.formats import checkpoint
from ....nulltext.formats.provenance import Provenance, fingerprint
from ....training import memory
from ....training.data import variants
from ....training.data.words import View, WordSettings, captions, encode
from ....training.losses.contrastive import equal, info_nce_each
from ....training.run import distributed, loop, state
from ....training.run.folder import RunFolder
from ....training.run.task import Task, Watch
from ....training.subject_settings import check_word
from ..models.text import TrainableText
from . import files as subject_files
from .learner import check_class_word
from .train import FOLDER, SubjectImages

ROWS = 2
"""Rows of each word, as in the official code."""
ENCODER = "l"
README = """# {name}

Words tuned with GCFG (CLIF, arXiv 2405.06914): {steps} steps on {views} views of {count} subjects. {how}

**Use them:** {prompts} in a prompt, together or alone; or as `initial_embedding` of Train Subject, which teaches the
diffusion model what they look like (CLIF's second stage). By themselves they only say what is what.
"""


def read_projection(path: str | Path) -> Tensor:
    """CLIP-L's text projection (768, C) -> (C) from a file of the whole text encoder.

    Raises:
        CheckpointError: there is none, as in the text encoders that are part of checkpoints.
    """
    tensors, _ = checkpoint.read(path)
    found = [value for key, value in tensors.items() if key.endswith("text_projection.weight")]
    if len(found) != 1 or found[0].ndim != 2:
        raise checkpoint.CheckpointError(
            f"{Path(path).name}: this holds no text projection, without which pictures and words cannot be compared; "
            "use a full CLIP-L file (a text encoder with its projection), not the one of a checkpoint.")
    return found[0].float()


@dataclass(frozen=True)
class Outcome:
    """What a run has made: the prompts of the words, the run's folder, its history, steps done."""

    prompts: tuple[str, ...]
    folder: RunFolder
    history: Tensor
    step: int


def tune(clip, vision, projection: Tensor, subjects: Sequence[SubjectImages], settings: WordSettings, watch: Watch
         ) -> Outcome:
    """Tune, or go on with, the run that the settings name; interrupted runs save and return what they have.

    Args:
        clip: the host's CLIP, whose encoder CLIP-L reads the words.
        vision: the host's CLIP_VISION of the same CLIP-L.
        projection: see ``read_projection``.
        subjects: pictures of each.

    Raises:
        ValueError: names, nouns, subjects or encoders that do not fit together.
    """
    names, nouns = ([part.strip() for part in text.split(",") if part.strip()] for text in (settings.names,
                                                                                          settings.nouns))
    if not 2 <= len(subjects) == len(names) == len(nouns) or len(set(names)) < len(names):
        raise ValueError(f"there are {len(subjects)} subjects, {len(set(names))} names and {len(nouns)} nouns; connect "
                         "at least two Subject Images and give each a name of its own and a noun, separated by commas.")
    if distributed.world() > 1:
        raise ValueError("words are tuned in one process, because every picture is contrasted with the whole batch; "
                         "start it without torchrun.")
    output = Path(settings.output or Path(folder_paths.get_output_directory()) / FOLDER).expanduser().resolve()
    settings = replace(settings, output=str(output), micro_batch=settings.batch)
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return _tune(clip, vision, projection, subjects, names, nouns, settings, watch)
        finally:
            gc.collect()
            comfy.model_management.soft_empty_cache()


def _tune(clip, vision, projection: Tensor, subjects: Sequence[SubjectImages], names: list[str], nouns: list[str],
          settings: WordSettings, watch: Watch) -> Outcome:
    place = RunFolder(Path(settings.output) / settings.run_name)
    for name in names:
        check_word(name)
        subject_files.check_free(name, place.identity)
    found = _views(vision, projection, subjects, settings, place)
    device = comfy.model_management.get_torch_device()
    comfy.model_management.unload_all_models()
    own = projection.to(device, copy=True)  # that of a node is an inference tensor
    tuner = WordTuner(TrainableText(clip, device), own, nouns)
    plan = memory.plan(replace(settings, precision="float32", optimizer="adamw"))
    with place.locked():
        place.begin(settings)
        run = loop.Training(tuner.task(), found, [], settings, plan, place, watch)
        run.resume(state.latest(place.states))
        run.run()
    source = Provenance(made_by=f"words: {run.step} steps on {len(found)} views of {', '.join(names)}")
    trained = run.average.exported()
    for number, name in enumerate(names):
        rows = {ENCODER: trained[f"rows/{number}"]} | {e: row[number] for e, row in tuner.untuned.items()}
        subject_files.write(name, rows, {}, source, place.identity)
    prompts = [f"embedding:{name}" for name in names]
    masked = all(images.source.masks.strip() for images in subjects)
    how = ("Regions were cut inside masks." if masked else
           "Without masks regions were seeded crops, which tell subjects apart less well than masks do.")
    place.write_readme(README.format(name=settings.run_name, steps=run.step, views=len(found), count=len(subjects),
                                     how=how, prompts=", ".join(f"`{p}`" for p in prompts)))
    return Outcome(tuple(prompts), place, run.record.table(), run.step)


def _views(vision, projection: Tensor, subjects: Sequence[SubjectImages], settings: WordSettings, place: RunFolder
           ) -> list[View]:
    """The views of all subjects with their features."""
    def see(picture: Tensor) -> Tensor:
        with torch.inference_mode():
            features = vision.encode_image(picture)["image_embeds"]
        if features.shape[-1] != projection.shape[0]:
            raise ValueError(f"the CLIP vision model gives features of {features.shape[-1]} numbers, the text "
                             f"projection of {projection.shape[0]}; load the vision model of CLIP-L (ViT-L/14).")
        return features.clone()

    def check(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
    pictures = [variants.load(images.source) for images in subjects]
    return encode(pictures, settings.views, settings.seed, place.path / "views", fingerprint(vision.get_sd()), see,
                  check)


class WordTuner:
    """The rows of the words of CLIP-L, and their loss.

    Args:
        text: the text encoders.
        projection: of CLIP-L, (C, 768).
        nouns: of which each word's rows start.
    """

    def __init__(self, text: TrainableText, projection: Tensor, nouns: Sequence[str]):
        if ENCODER not in text.encoders:
            raise ValueError("words are tuned through CLIP-L, which this model's text encoder does not have.")
        self.text, self.projection = text, projection
        for noun in nouns:
            check_class_word(text, noun)
        rows = [text.row(noun) for noun in nouns]
        self.parameters = {f"rows/{k}": nn.Parameter(row[ENCODER].repeat(ROWS, 1)) for k, row in enumerate(rows)}
        self.untuned = {e: [row[e].repeat(ROWS, 1) for row in rows] for e in text.encoders if e != ENCODER}

    def task(self) -> Task:
        """What the training loop needs."""
        return Task(self.parameters, self.losses, self.projection.device)

    def losses(self, features: Tensor, noise: Tensor, level: Tensor, shown: Sequence[View]) -> Tensor:
        """InfoNCE of views and captions, (B,); equal subjects are no negatives of each other."""
        rows = {ENCODER: [self.parameters[f"rows/{k}"] for k in range(len(self.parameters))]}
        texts = captions([view.shown for view in shown], level)
        meanings = F.linear(self.text.meaning(texts, rows, ENCODER), self.projection)
        same = equal([tuple(sorted(view.shown)) for view in shown]).to(features.device)
        return info_nce_each(features.flatten(1), meanings, same=same)
