"""A training run in the host: from a MODEL and pictures to a concept MODEL and a run folder; goes on where it was."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training import memory
from ...training.data import dataset
from ...training.run import continuation, distributed, folder, loop, state
from ...training.run.folder import RunFolder
from ...training.run.task import Watch
from ...training.settings import Settings
from ...training.weights import optimizers
from ..concepts import files as concept_files
from ..concepts.concept import UNET
from ..concepts.convert import null_text_features
from ..models import check_conditioning, describe
from ..streams import picture_channels
from .export import Export, checkpoint_of, finished, has_null_text_form
from .images import ConceptImages
from .models import frozen
from .models.empty_prompt import EmptyPrompt
from .models.network import differentiable
from .models.trainable import Trainable
from .preview import Preview


@dataclass(frozen=True)
class Outcome:
    """What a run has made: the concept MODEL, the run's folder, its history (see ``folder.COLUMNS``), steps done.

    Only the first process has the MODEL.
    """

    model: ModelPatcher | None
    folder: RunFolder
    history: Tensor
    step: int


def run_folder(settings: Settings) -> RunFolder:
    """The folder of a run: below ``output`` of the settings, or of the host."""
    output = settings.output or Path(folder_paths.get_output_directory()) / concept_files.FOLDER
    return RunFolder(Path(output).expanduser().resolve() / settings.run_name)


def train(base: ModelPatcher, clip, images: ConceptImages, settings: Settings, watch: Watch,
          place: RunFolder | None = None) -> Outcome:
    """Train, or go on with, the run that the settings name; interrupted runs save and return what they have.

    Args:
        base: the base MODEL; to the bit the same afterwards.
        clip: the text encoder, for the null text and the previews' prompts.
        images: the pictures.
        settings: how; those of the pictures are taken from ``images``.
        watch: is asked and told; ``show(step, steps, picture)`` gets previews if it has that.
        place: the run's folder, if it is not ``run_folder(settings)``.

    Raises:
        SettingsError, ValueError: settings, pictures or a base model that do not fit the run.
        RuntimeError: another process is at work on the run.
        Diverged, OutOfMemory, OSError: see ``loop.Training.run``.
    """
    source, place = images.source, place or run_folder(settings)
    settings = replace(
        settings, folder=str(Path(source.folder).expanduser().resolve()), resolution=source.resolution,
        resolutions=", ".join(map(str, source.others)), flip=source.flip,
        crop="square" if source.square else "buckets", checkpoint=settings.checkpoint or checkpoint_of(base))
    _check_latents(base, images)
    alone = place.locked() if distributed.rank() == 0 else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), differentiable(), alone:
        try:
            return _train(base, clip, images, settings, watch, place)
        finally:
            gc.collect()
            comfy.model_management.soft_empty_cache()


def _check_latents(base: ModelPatcher, images: ConceptImages) -> None:
    channels = picture_channels(base.get_model_object("latent_format"))
    wrong = next((latent for latent in images.latents.found if latent.shape[0] != channels), None)
    if wrong is not None:
        raise ValueError(f"the pictures were encoded by an autoencoder with {wrong.shape[0]} channels, but "
                         f"{describe(base)} has {channels}; give Concept Image Folder the base model's own VAE.")


class _Watching(Preview):
    """Makes a run's previews and its files."""

    def __init__(self, *args, export: Export):
        super().__init__(*args)
        self.export, self.written = export, -1

    def saved(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """A usable model after every save; if only that fails, the run goes on."""
        if not step:
            return
        try:
            self.export.write(step, weights)
            self.written = step
        except OSError as error:
            logging.warning("GCFG: %s", error)


def _train(base: ModelPatcher, clip, images: ConceptImages, settings: Settings, watch: Watch, place: RunFolder
           ) -> Outcome:
    device = comfy.model_management.get_torch_device()
    newest = state.latest(place.states)
    with torch.inference_mode():
        prompts = {text: encode(clip, text) for text in {"", *settings.prompts()}}
    check_conditioning(base, prompts[""], "Train Concept Model")
    before, notes = newest.notes if newest else {}, _notes(base, images, prompts[""])
    continuation.check_inputs(before, notes, settings.run_name)
    plan = continuation.resolved(
        memory.plan(settings, _available(device), optimizers.has_8_bit(), distributed.world()), settings, before)
    if distributed.rank() == 0:
        place.begin(settings)
        if settings.shard and not plan.shard:
            watch.tell("shard does nothing here: without torchrun this process has all the weights.")
    training, held_out = dataset.split(images.latents.found, settings.held_out, settings.seed,
                                       before.get("held_out", ()))
    training = dataset.repeated(training, settings.times())
    if newest is not None and newest.step >= settings.target_steps:
        made = finished(base, settings.method, place.path / f"{settings.run_name}.safetensors",
                        state.path_of(place.states, newest.step))
        if made is not None:
            return Outcome(made, place, newest.history, newest.step)
    form = _form(base, newest, prompts[""], settings, plan, device)
    export = Export(base, place, settings, images.latents, len(training), form)
    watching = _Watching(base, form, images.vae, prompts, settings, place, watch, export=export)
    run = loop.Training(form.task(notes), training, held_out, settings, plan, place, watching)
    run.resume(newest)
    newest = None
    run.run()
    model = None
    with run.averaged() as weights:
        if distributed.rank() == 0:
            if run.step not in (0, watching.written):
                export.write(run.step, weights)
            model = export.model(run.step, weights)
    return Outcome(model, place, run.record.table(), run.step)


def _form(base: ModelPatcher, newest: state.State | None, empty: list, settings: Settings, plan: memory.Plan,
          device: torch.device) -> Trainable | EmptyPrompt:
    """What is trained: the null-text form of a UNet, a LoRA under the empty prompt of anything else."""
    if not has_null_text_form(base, settings.method):
        comfy.model_management.unload_all_models()
        return EmptyPrompt(base, empty, settings, plan, device)
    features = newest.features if newest is not None else _features(base, empty, settings)
    comfy.model_management.unload_all_models()
    return Trainable(base, features, empty, settings, plan, device)


def _notes(base: ModelPatcher, images: ConceptImages, empty: list) -> dict[str, object]:
    """What is connected to a run, see ``continuation.INPUTS``."""
    patched = [key.removeprefix(UNET) for key in base.patches if key.startswith(UNET)]
    sampling = base.get_model_object("model_sampling")
    one, sigma = torch.ones(1, 1), torch.tensor([0.5]).to(sampling.sigmas)
    behaviour = [sampling.sigma_min, sampling.sigma_max, sampling.sigmas[len(sampling.sigmas) // 2],
                 sampling.calculate_denoised(sigma, one, 2.0 * one), sampling.noise_scaling(sigma, one, one)]
    stored = frozen.stored(base)
    loaded = {name: weight for name, (weight, _) in stored.items()}
    return {"base": continuation.sketch(loaded, plain=lambda name: frozen.whole(stored[name])),
            "vae": continuation.sketch(images.vae.get_sd()),
            "patches": continuation.sketch(frozen.patched(base, stored, patched)) if patched else [],
            "sampling": [float(f"{float(value):.4g}") for value in behaviour],
            "text": continuation.sketch_of_text(empty[0][0])}


def loss_image(made: Outcome) -> Tensor:
    """The curve of a run as an IMAGE (1, H, W, 3); where it cannot be drawn it is grey and the log says why."""
    try:
        return torch.from_numpy(folder.plot(made.history)).float().div(255).unsqueeze(0)
    except Exception as error:  # matplotlib can be missing or broken; the model is trained all the same
        logging.warning("GCFG: the trained model is saved, but its loss cannot be drawn (%s: %s).",
                        type(error).__name__, error)
        return torch.full((1, 64, 64, 3), 0.5)


def encode(clip, text: str) -> list:
    """A prompt as CLIP Text Encode gives it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _features(base: ModelPatcher, empty: list, settings: Settings) -> dict[str, Tensor]:
    with torch.inference_mode():
        return null_text_features(base, empty, seed=settings.seed, size=min(64, settings.resolution // 8))[0]


def _available(device: torch.device) -> int | None:
    """Bytes of the GPU, None for a CPU."""
    if comfy.model_management.is_device_cpu(device):
        return None
    return comfy.model_management.get_total_memory(device)
