"""A training run in the host: from a MODEL and pictures to a concept MODEL and a run folder; goes on where it was."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nulltext import checkpoint
from ...nulltext.provenance import fingerprint
from ...training import data, distributed, folder, loop, memory, optimizers, state
from ...training.folder import RunFolder
from ...training.settings import Settings
from ...training.task import Watch
from ..concepts import files as concept_files
from ..concepts.concept import originals
from ..concepts.convert import null_text_features
from .images import ConceptImages
from .preview import Preview
from .trainable import Trainable

README = """# {name}

A concept model trained with GCFG: {steps} steps on {pictures} pictures, {method}.

**Use it:** in ComfyUI, Load Concept Model with `{file}` on the base model ({base}), then its output as
`concept_model` of KSampler (GCFG).

* `{file}`: the concept model{lora}
* `loss.csv`, `loss.png`: training loss of every step, held-out loss
* `previews/`: base and concept model sampled together, from one seed
* `states/`: everything needed to go on; delete it when you are done
* `config.toml`: all settings. `python -m gcfg train config.toml` goes on with this run; `checkpoint` must name the file
  of the base model there

{skipped}
"""


@dataclass(frozen=True)
class Outcome:
    """What a run has made: the concept MODEL, the run's folder, its history (see ``folder.COLUMNS``), steps done."""

    model: ModelPatcher
    folder: RunFolder
    history: Tensor
    step: int


def run_folder(settings: Settings) -> RunFolder:
    """The folder of a run."""
    return RunFolder(Path(settings.output) / settings.run_name)


def train(base: ModelPatcher, clip, images: ConceptImages, settings: Settings, watch: Watch) -> Outcome:
    """Train, or go on with, the run that the settings name; interrupted runs save and return what they have.

    Args:
        base: the base MODEL; to the bit the same afterwards.
        clip: the text encoder, for the null text and the previews' prompt.
        images: the pictures.
        settings: how; those of the pictures are taken from ``images``.
        watch: see ``preview.Preview``.

    Raises:
        SettingsError, ValueError: settings or a base model that do not fit the run.
        Diverged, OutOfMemory, OSError: see ``loop.Training.run``.
    """
    source = images.source
    output = settings.output or Path(folder_paths.get_output_directory()) / concept_files.FOLDER
    settings = replace(settings, output=str(Path(output).expanduser().resolve()),
                       folder=str(Path(source.folder).expanduser().resolve()), resolution=source.resolution,
                       flip=source.flip, crop="square" if source.square else "buckets")
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return _train(base, clip, images, settings, watch)
        finally:
            gc.collect()
            comfy.model_management.soft_empty_cache()


def _train(base: ModelPatcher, clip, images: ConceptImages, settings: Settings, watch: Watch) -> Outcome:
    device = comfy.model_management.get_torch_device()
    plan = memory.plan(settings, _available(device), optimizers.has_8_bit())
    place, notes = run_folder(settings), {"base": fingerprint(originals(base))}
    newest = state.latest(place.states)
    if newest is not None and newest.notes.get("base") != notes["base"]:
        raise ValueError(f"the run '{settings.run_name}' was begun on another base model; connect that one, or choose "
                         "another run_name.")
    if distributed.rank() == 0:
        place.begin(settings)
    with torch.inference_mode():
        empty = encode(clip, "")
        control = encode(clip, settings.preview_prompt) if settings.preview_prompt else empty
    features = newest.features if newest is not None else _features(base, empty, settings)
    comfy.model_management.unload_all_models()
    trainable = Trainable(base, features, empty, settings, plan, device)
    training, held_out = data.split(images.latents.found, settings.held_out, settings.seed)
    shower = Preview(base, trainable, images.vae, control, empty, settings, place, watch)
    run = loop.Training(trainable.task(notes), training, held_out, settings, plan, place, shower)
    run.resume(newest)
    newest = None
    run.run()
    made_by = f"trained: {run.step} steps on {len(training)} pictures, batch {settings.batch}, {settings.method}"
    model = trainable.concept(run.average.exported(), made_by)
    if distributed.rank() == 0:
        _export(model, base, place, settings, run.step, len(training), images.latents)
    return Outcome(model, place, torch.tensor(run.history, dtype=torch.float64), run.step)


def loss_image(made: Outcome) -> Tensor:
    """The curve of a run as an IMAGE (1, H, W, 3); without matplotlib it is grey and the log says what to install."""
    try:
        return torch.from_numpy(folder.plot(made.history)).float().div(255).unsqueeze(0)
    except ImportError as missing:
        logging.warning("GCFG: the trained model is saved, but its loss cannot be drawn: %s", missing)
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


def _export(model: ModelPatcher, base: ModelPatcher, place: RunFolder, settings: Settings, step: int, pictures: int,
            latents: data.Latents) -> None:
    """The concept model as files for this pack and, of a LoRA, for the host's own loader; how to use them."""
    types = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    dtype = types.get(base.model_dtype(), "fp16")
    name = settings.run_name
    checkpoint.write(place.path / f"{name}.safetensors", *concept_files.content(model, dtype))
    if settings.method == "LoRA":
        checkpoint.write(place.path / f"{name}_stock_lora.safetensors",
                         *concept_files.content(model, dtype, "stock LoRA", base))
    lora = (f"\n* `{name}_stock_lora.safetensors`: the same for Load LoRA, at strength 1" if settings.method == "LoRA"
            else "")
    place.write_readme(README.format(name=name, steps=step, pictures=pictures, method=settings.method, lora=lora,
                                      file=f"{name}.safetensors", skipped=latents.report(1000),
                                      base=settings.checkpoint or type(base.model.model_config).__name__))
