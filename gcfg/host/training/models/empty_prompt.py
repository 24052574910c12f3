"""The concept of a model without a null-text form, a transformer: a LoRA that is trained under the empty prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....nulltext.formats.provenance import Provenance
from ....training.data.dataset import Latent, masks_of
from ....training.losses.objectives import undistilled
from ....training.memory import Plan
from ....training.run.task import Task
from ....training.settings import Settings, SettingsError
from ...concepts.files import DTYPES
from ...streams import without_sound
from .blocks import prepare, transformer_blocks
from .captioned import Captioned, with_lora


class EmptyPrompt(Captioned):
    """A base MODEL's network, and low-rank pairs on all its layers, trained on what it makes of the empty prompt.

    It knows what ``Trainable`` knows: parameters, task, concept, files.

    Args:
        base: the MODEL, of any class of the host; its weight patches (LoRAs) count.
        conditioning: of the empty prompt. Where the network reads a guidance strength (Flux.1), it is 1.
        settings, plan: how it is trained.
        device: where.

    Raises:
        SettingsError: the method "full".
        ValueError: a model that cannot be trained.
    """

    def __init__(self, base: ModelPatcher, conditioning: list, settings: Settings, plan: Plan, device: torch.device):
        if settings.method == "full":
            raise SettingsError(f"{type(base.model.model_config).__name__} has no null-text form whose weights could "
                                "all be trained; choose the method LoRA.")
        super().__init__(base, settings.method, settings.rank, settings.seed, plan, device)
        self.settings = settings
        prepare(transformer_blocks(self.network), plan, in_place=True)
        features, extra = conditioning[0]
        plain = {name: value.clone() if isinstance(value, Tensor) else value for name, value in extra.items()}
        self.empty = [[features.clone(), {**plain, "guidance": 1.0}]]  # clones: not made in inference mode
        self._conditions: dict[tuple, dict] = {}

    def task(self, notes: Mapping[str, object]) -> Task:
        """What the training loop needs."""
        loss = self.diffusion_loss(self.predicted, self.settings.min_snr)
        still = self.latent_format.latent_dimensions == 3  # a video model: each picture is one frame

        def losses(latents: Tensor, noise: Tensor, level: Tensor, pictures: Sequence[Latent]) -> Tensor:
            mask = masks_of(pictures, latents)
            if still:
                latents, noise = latents.unsqueeze(2), noise.unsqueeze(2)
                mask = mask if mask is None else mask.unsqueeze(2)
            return loss(self.latent_format.process_in(latents), noise, level, mask)
        return Task(self.parameters, losses, self.device, self.autocast, {}, notes)

    def predicted(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The output for noisy latents at sigma (B,), undistilled if the settings say so."""
        output, cfg = self._output(x, sigma), self.settings.undistill
        if cfg == 0.0:
            return output
        with torch.no_grad(), self.pairs.switched_off():
            base = self._output(x, sigma)
        return undistilled(output, base, cfg)

    def _output(self, x: Tensor, sigma: Tensor) -> Tensor:
        if len(x) > 1 and len(without_sound(x, self.latent_format)[1]) > 1:  # a network of streams takes one row
            return torch.cat([self._output(*row) for row in zip(x.split(1), sigma.split(1), strict=True)])
        key = tuple(x.shape)
        if key not in self._conditions:
            with torch.no_grad():
                self._conditions[key] = self.conditions([self.empty] * len(x), x)
        return self.predict(x, sigma, **self._conditions[key])

    def concept(self, trained: Mapping[str, Tensor], made_by: str) -> ModelPatcher:
        """A clone of the base with the LoRA as ordinary patches, which samples beside it on one copy of the weights."""
        return with_lora(self.base, self.lora(trained))

    def files(self, trained: Mapping[str, Tensor], made_by: str, dtype: str
              ) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
        """A LoRA file of the host: tensors and metadata."""
        kind = type(self.base.model.model_config).__name__
        tensors = {key: value.to(DTYPES[dtype]) for key, value in self.lora(trained).items()}
        return {"": (tensors, Provenance(kind, made_by=made_by).to_metadata("lora"))}
