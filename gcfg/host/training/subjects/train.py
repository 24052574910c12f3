"""A subject's training run: from a MODEL, a CLIP and a few pictures to a new word and weights that know it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....nulltext.provenance import fingerprint
from ....training import memory
from ....training.data import variants
from ....training.losses.semantic import semantic_preservation
from ....training.run import continuation, distributed, loop, state
from ....training.run.folder import RunFolder
from ....training.run.task import Task, Watch
from ....training.subject_settings import SubjectSettings
from ....training.weights import optimizers
from ...concepts.concept import originals, stated
from ..models.captioned import Captioned, with_lora
from ..models.network import differentiable
from ..models.text import TrainableText
from ..train import _available, encode
from . import files as subject_files
from .preview import SubjectPreview

FOLDER = "subjects"
CAPTION = "a photo of a"
README = """# {name}

A subject trained with GCFG: {steps} steps on {pictures}, {method}, semantic weight {weight}.

**Use it:** `embedding:{name} {class_word}` in a prompt{lora}. It works in ComfyUI without this pack; with it, the
preset class-guided keeps what the base knows of the class (Guidance Preset).

* `{embedding}`: the word
* `loss.csv`, `loss.png`, `previews/`, `states/`, `config.toml`: as of every run; delete `states/` when you are done
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
        base, clip: of a checkpoint whose text encoder is CLIP; to the bit the same afterwards.
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
    path, notes = Path(settings.output) / name, {"base": fingerprint(originals(base))}
    subject_files.check_free(name, str(path))
    plan = memory.plan(settings, _available(device), optimizers.has_8_bit())
    newest = state.latest(path / "states")
    if newest is not None and newest.notes.get("base") != notes["base"]:
        raise ValueError(f"the subject '{name}' was begun on another base model; connect that one, or choose another "
                         "name.")
    with torch.inference_mode():
        empty = encode(clip, "")
    comfy.model_management.unload_all_models()
    plan = continuation.resolved(plan, settings, newest.notes if newest else {})
    learner, place = SubjectLearner(base, clip, settings, plan, device), RunFolder(path)
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
        subject_files.write(name, learner.rows_of(trained), lora, stated(base, made_by), str(place.path))
        _explain(place, settings, run.step, variants.names(images.found), bool(lora))
    prompt = f"embedding:{name} {settings.class_word}"
    return Outcome(with_lora(base, lora), prompt, place, run.record.table(), run.step)


def _explain(place: RunFolder, settings: SubjectSettings, step: int, pictures: Sequence[str], lora: bool) -> None:
    name = settings.run_name
    use = f", with Load LoRA `{subject_files.lora_path(name)}` at strength 1" if lora else ""
    place.write_readme(README.format(
        name=name, steps=step, pictures=", ".join(pictures), method=settings.method, weight=settings.semantic_weight,
        class_word=settings.class_word, lora=use, embedding=subject_files.embedding_path(name)))


class SubjectLearner:
    """The networks of a subject's run: text encoder, UNet, and what of them is trained.

    Args:
        base, clip: as for ``train``.
        settings, plan: how it is trained.
        device: where.
    """

    def __init__(self, base: ModelPatcher, clip, settings: SubjectSettings, plan: memory.Plan, device: torch.device):
        self.base, self.settings, self.device = base, settings, device
        self.text = TrainableText(clip, device)
        check_class_word(self.text, settings.class_word)
        self.network = Captioned(base, settings.method, settings.rank, settings.seed, plan, device)
        self.parameters = dict(self.network.parameters)
        for encoder, row in self._first_rows().items():
            self.parameters[f"rows/{encoder}"] = nn.Parameter(row.to(device, torch.float32).clone())
        with torch.no_grad():
            self.class_meaning = self.text.meaning([f"{CAPTION} {settings.class_word}"], {})

    def _first_rows(self) -> dict[str, Tensor]:
        s = self.settings
        if not s.initial_embedding:
            return {encoder: row.repeat(s.words, 1) for encoder, row in self.text.row(s.initial_word).items()}
        found = subject_files.read_rows(s.initial_embedding)
        rare = self.text.row(s.initial_word)
        wrong = [e for e, row in found.items() if e not in rare or row.shape[1] != rare[e].shape[1]]
        if wrong:
            raise ValueError(f"the embedding '{s.initial_embedding}' is for other text encoders than this model's.")
        count = len(next(iter(found.values())))
        return {encoder: found.get(encoder, row.repeat(count, 1)) for encoder, row in rare.items()}

    def rows_of(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows (n, C) among trained weights, by encoder."""
        return {n.removeprefix("rows/"): p.detach() for n, p in parameters.items() if n.startswith("rows/")}

    def lora(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The LoRA of trained weights, in the base's own precision."""
        kind = self.base.model_dtype()
        tensors = self.network.lora({n: p for n, p in parameters.items() if not n.startswith("rows/")})
        return {key: value.to(kind if kind in (torch.float16, torch.bfloat16) else torch.float32)
                for key, value in tensors.items()}

    def task(self, notes: Mapping[str, object]) -> Task:
        """What the training loop needs."""
        return Task(self.parameters, self.losses, self.device, self.network.autocast, notes=notes)

    def losses(self, latents: Tensor, noise: Tensor, level: Tensor, pictures: Sequence[variants.Variant]) -> Tensor:
        """The masked diffusion loss plus the weighted semantic distance, (B,) (arXiv 2405.17532, equation 8)."""
        class_word, rows = self.settings.class_word, self.rows()
        with torch.autocast(self.device.type, enabled=False):  # as the host encodes prompts
            texts = [self.text.conditioning(f"{p.prefix}{CAPTION} <0> {class_word}", rows) for p in pictures]
            distance = self.semantic_distance(rows)
        conditions = self.network.conditions(texts, latents)
        loss = self.network.diffusion_loss(lambda x, sigma: self.network.predict(x, sigma, **conditions),
                                           self.settings.min_snr)
        mask = torch.stack([picture.mask() for picture in pictures]).to(self.device)
        return (loss(self.network.latent_format.process_in(latents), noise, level, mask)
                + self.settings.semantic_weight * distance)

    def rows(self) -> dict[str, list[Tensor]]:
        """The new word's rows for ``TrainableText``."""
        return {name.removeprefix("rows/"): [p] for name, p in self.parameters.items() if name.startswith("rows/")}

    def semantic_distance(self, rows: Mapping[str, list[Tensor]]) -> Tensor:
        """L_sp of the new word; not computed at weight 0."""
        if not self.settings.semantic_weight:
            return torch.zeros((), device=self.device)
        new = self.text.meaning([f"{CAPTION} <0> {self.settings.class_word}"], rows)
        return semantic_preservation(new, self.class_meaning)


def check_class_word(text: TrainableText, word: str) -> None:
    """Refuse what is not one token (ValueError)."""
    for ids in text.ids(word).values():
        if len(ids) != 1:
            raise ValueError(f"the class word '{word}' has {len(ids)} tokens; take one common word that the text "
                             "encoder knows as a whole, such as dog, cat, cup, toy or face.")
