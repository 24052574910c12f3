"""What a run hands over: the concept model as files, and a text that says how to use them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nulltext.formats import checkpoint
from ...training.data import dataset
from ...training.run.folder import RunFolder
from ...training.settings import Settings
from ..concepts import concept
from .models.captioned import with_lora
from .models.empty_prompt import EmptyPrompt
from .models.lycoris import KINDS
from .models.network import unet_class

README = """# {name}

A concept model trained with GCFG: {steps} steps on {pictures} pictures, {method}.

**Use it:** in ComfyUI, {loader} with `{file}` on the base model ({base}), then its output as
`concept_model` of KSampler (GCFG).

* `{file}`: the concept model, of the last save{lora}
* `loss.csv`, `loss.png`: training loss of every step, held-out loss
* `previews/`: base and concept model sampled together, from fixed seeds
* `states/`: everything needed to go on; delete it when you are done
* `config.toml`: all settings. In the folder of the pack, `python -m gcfg train` with the path of this file goes on with
  this run, here or on another machine; `checkpoint` must name the file of the base model there

{skipped}
"""


class Export:
    """Writes the files of a run.

    Args:
        base: the base MODEL.
        place, settings: of the run.
        latents: its pictures; ``trained_on`` of them are not held out.
        form: what is trained, ``Trainable`` or ``EmptyPrompt``.
    """

    def __init__(self, base: ModelPatcher, place: RunFolder, settings: Settings, latents: dataset.Latents,
                 trained_on: int, form):
        self.base, self.place, self.settings, self.latents, self.form = base, place, settings, latents, form
        self.trained_on = trained_on

    def write(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """The concept model of a step as files for this pack and, of a LoRA, for the host's own loader.

        Args:
            weights: under the names of the form's ``parameters``.

        Raises:
            OSError: they could not be written; the state is saved all the same.
        """
        dtype = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(self.base.model_dtype(), "fp16")
        try:
            for suffix, content in self.form.files(weights, self._made_by(step), dtype).items():
                checkpoint.write(self.file.with_stem(self.settings.run_name + suffix), *content)
            every = self.settings.export_every
            if every and step % every == 0:
                self._numbered(step)
            self._readme(step)
        except OSError as error:
            raise OSError(f"the concept model could not be written to {self.place.path} ({error.strerror or error}); "
                          f"the state of step {step} is saved. Free some space and start again.") from error

    def model(self, step: int, weights: Mapping[str, Tensor]) -> ModelPatcher:
        """The concept MODEL after ``step`` steps."""
        return self.form.concept(weights, self._made_by(step))

    def _made_by(self, step: int) -> str:
        return (f"trained: {step} steps on {self.trained_on} pictures, batch {self.settings.batch}, "
                f"{self.settings.method}")

    def _readme(self, step: int) -> None:
        name, files = self.settings.run_name, sorted(self.place.path.glob("*_stock_lora.safetensors"))
        plain = isinstance(self.form, EmptyPrompt)
        self.place.write_readme(README.format(
            name=name, steps=step, pictures=self.trained_on, method=self.settings.method, file=self.file.name,
            skipped=self.latents.report(1000), loader="Load LoRA" if plain else "Load Concept Model",
            base=Path(checkpoint_of(self.base)).name or type(self.base.model.model_config).__name__,
            lora=f"\n* `{files[0].name}`: the same for Load LoRA, at strength 1" if files else ""))

    @property
    def file(self) -> Path:
        return self.place.path / f"{self.settings.run_name}.safetensors"

    def _numbered(self, step: int) -> None:
        """A copy that later saves do not replace; a second name for the same bytes where the disk can do that."""
        kept = self.place.path / f"{self.settings.run_name}_step_{step:08}.safetensors"
        kept.unlink(missing_ok=True)
        try:
            os.link(self.file, kept)
        except OSError:
            tensors, metadata = checkpoint.read(self.file)
            checkpoint.write(kept, tensors, metadata)


def finished(base: ModelPatcher, method: str, file: Path, state: Path) -> ModelPatcher | None:
    """The concept MODEL from its file, if that was written after the state was; None if it must be made again."""
    try:
        if file.stat().st_mtime < state.stat().st_mtime:
            return None
        return concept.load(base, str(file))[0] if has_null_text_form(base, method) else with_lora(
            base, checkpoint.read(file)[0])
    except (OSError, ValueError) as error:
        logging.info("GCFG: %s is made again (%s).", file.name, error)
        return None


def has_null_text_form(base: ModelPatcher, method: str) -> bool:
    """True for UNets with a cross-attention; False for transformers, and for methods that only LoRA files can hold."""
    return isinstance(base.model.diffusion_model, unet_class()) and method not in KINDS


def checkpoint_of(base: ModelPatcher) -> str:
    """The checkpoint file that a MODEL was loaded from; empty where the host does not say, or if it is patched."""
    made = getattr(base, "cached_patcher_init", None)
    if not made or base.patches or made[0] is not comfy.sd.load_checkpoint_guess_config:
        return ""
    return made[1][0] if isinstance(made[1][0], str) else ""
