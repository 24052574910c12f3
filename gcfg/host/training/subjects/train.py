"""A subject's training run: from a MODEL, a CLIP and a few pictures to a new word and weights that know it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....nulltext.formats.provenance import fingerprint
from ....training import memory
from ....training.data import variants
from ....training.run import continuation, distributed, loop, state
from ....training.run.folder import RunFolder
from ....training.run.task import Watch
from ....training.subject_settings import SubjectSettings
from ....training.weights import optimizers
from ...concepts.concept import originals, stated
from ..models.captioned import with_lora
from ..models.network import differentiable
from ..train import _available, encode
from . import files as subject_files
from .learner import SubjectLearner
from .preview import SubjectPreview

FOLDER = "subjects"
README = """# {name}

A subject trained with GCFG: {steps} steps on {pictures}, {method}, semantic weight {weight}.

**Use it:** `{subject}` in a prompt{lora}. It works in ComfyUI without this pack; with it, the
preset class-guided keeps what the base knows of the class (Guidance Preset).

{embedding}* `loss.csv`, `loss.png`, `previews/`, `states/`, `config.toml`: as of every run; delete `states/` in the end
"""


@dataclass(frozen=True, eq=False)
class SubjectImages:
    """Socket type GCFG_SUBJECT: pictures of one thing, their variants as latents on disk, the autoencoder of both."""

    source: variants.Subject
    found: tuple[variants.Variant, ...]
    vae: object

    def report(self) -> str:
        """What there is, for people."""
        names = variants.names(self.found)
        masked = ", masked" if self.source.masks.strip() else ""
        lines = [f"{len(names)} pictures, {len(self.found)} variants{masked}"]
        return "\n".join(lines + [f"  {name}" for name in names])


@dataclass(frozen=True)
class Outcome:
    """What a run has made: the MODEL, the prompt of the subject, the run's folder, its history, steps done."""

    model: ModelPatcher
    prompt: str
    folder: RunFolder
    history: Tensor
    step: int


def prepare(source: variants.Subject, vae, folder: str | Path | None = None, progress=lambda done, total: None
            ) -> SubjectImages:
    """Encode the variants that are not on disk yet; see ``variants.encode``."""
    if source.resolution % 64:
        raise ValueError(f"resolution is {source.resolution}; it must be a multiple of 64.")

    def encoder(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return vae.encode(pictures)

    def watched(done: int, total: int) -> None:
        progress(done, total)
        comfy.model_management.throw_exception_if_processing_interrupted()
    place = folder or Path(folder_paths.get_output_directory()) / "concept_latents"
    found = variants.encode(source, place, fingerprint(vae.get_sd()), encoder, watched)
    return SubjectImages(source, tuple(found), vae)


def train(base: ModelPatcher, clip, images: SubjectImages, settings: SubjectSettings, watch: Watch) -> Outcome:
    """Train, or go on with, the run that the settings name; interrupted runs save and return what they have.

    Args:
        base, clip: to the bit the same afterwards; a text encoder that is no CLIP learns no word, see ``text_for``.
        images: the pictures.
        settings: how; those of the pictures are taken from ``images``.
        watch: see ``preview.Preview``.

    Raises:
        SettingsError, ValueError: settings, words or a base model that do not fit the run.
        Diverged, OutOfMemory, OSError: see ``loop.Training.run``.
    """
    source = images.source
    output = settings.output or Path(folder_paths.get_output_directory()) / FOLDER
    settings = replace(
        settings, output=str(Path(output).expanduser().resolve()),
        folder=str(Path(source.folder).expanduser().resolve()), masks=source.masks, resolution=source.resolution,
        flip=source.flip, augment=source.augment, variants=source.count, crop="square")
    with torch.inference_mode(False), torch.enable_grad(), differentiable():
        try:
            return _train(base, clip, images, settings, watch)
        finally:
            gc.collect()
            comfy.model_management.soft_empty_cache()


def _train(base: ModelPatcher, clip, images: SubjectImages, settings: SubjectSettings, watch: Watch) -> Outcome:
    device, name = comfy.model_management.get_torch_device(), settings.run_name
    place, notes = RunFolder(Path(settings.output) / name), {"base": fingerprint(originals(base))}
    subject_files.check_free(name, place.identity)
    plan = memory.plan(settings, _available(device), optimizers.has_8_bit())
    newest = state.latest(place.states)
    if newest is not None and newest.notes.get("base") != notes["base"]:
        raise ValueError(f"the subject '{name}' was begun on another base model; connect that one, or choose another "
                         "name.")
    with torch.inference_mode():
        empty = encode(clip, "")
    comfy.model_management.unload_all_models()
    plan = continuation.resolved(plan, settings, newest.notes if newest else {})
    learner = SubjectLearner(base, clip, settings, plan, device)
    with place.locked() if distributed.rank() == 0 else nullcontext():
        if distributed.rank() == 0:
            place.begin(settings)
        shower = SubjectPreview(learner, images.vae, empty, settings, place, watch)
        run = loop.Training(learner.task(notes), images.found, [], settings, plan, place, shower)
        run.resume(newest)
        run.run()
    trained = run.average.exported()
    lora = learner.lora(trained)
    made_by = (f"subject: {run.step} steps on {len(variants.names(images.found))} pictures, {settings.method}, "
               f"semantic weight {settings.semantic_weight:g}")
    if distributed.rank() == 0:
        subject_files.write(name, learner.rows_of(trained), lora, stated(base, made_by), place.identity)
        _explain(place, settings, run.step, variants.names(images.found), bool(lora), bool(learner.rows()))
    return Outcome(with_lora(base, lora), settings.subject(bool(learner.rows())), place, run.record.table(), run.step)


def _explain(place: RunFolder, settings: SubjectSettings, step: int, pictures: Sequence[str], lora: bool,
             word: bool) -> None:
    name = settings.run_name
    use = f", with Load LoRA `{subject_files.lora_path(name)}` at strength 1" if lora else ""
    place.write_readme(README.format(
        name=name, steps=step, pictures=", ".join(pictures), method=settings.method, weight=settings.semantic_weight,
        subject=settings.subject(word), lora=use,
        embedding=f"* `{subject_files.embedding_path(name)}`: the word\n" if word else ""))
