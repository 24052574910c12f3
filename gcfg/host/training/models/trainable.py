"""The null-text form of a host MODEL in training, and its weights handed back as a concept MODEL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....nulltext.attention import cross_attention_blocks
from ....nulltext.formats.identify import Kind
from ....nulltext.formats.keymap import feature_key
from ....training.data.dataset import Latent, masks_of
from ....training.memory import Plan
from ....training.run.task import Task
from ....training.settings import Settings
from ....training.weights import low_rank, shards
from ...concepts import files as concept_files
from ...concepts.concept import Blueprint, Concept, adopt, apply_adapter, build, shapes, stated
from ...concepts.convert import rebuild
from ...models import is_dynamic
from .blocks import prepare
from .network import PIXELS, Network


class Trainable(Network):
    """The null-text form of a base MODEL's network, and the weights of it that are trained.

    Args:
        base: the MODEL; its weight patches (LoRAs) count.
        features: null-text features by transformer block.
        conditioning: of the empty prompt; SDXL reads its pooled vector.
        settings, plan: how it is trained.
        device: where.

    Raises:
        ValueError: a model that cannot be trained, such as an inpainting model.
    """

    def __init__(self, base: ModelPatcher, features: Mapping[str, Tensor], conditioning: list, settings: Settings,
                 plan: Plan, device: torch.device):
        shapes(base)  # refuses what has no null-text form
        super().__init__(base, plan, device, {block: feature.detach().cpu().float().clone()
                                              for block, feature in features.items()}, settings.method == "full")
        self.settings, self.full = settings, settings.method == "full"
        self.pooled = conditioning[0][1].get("pooled_output")
        prepare(cross_attention_blocks(self.network).values(), plan)
        if self.full:
            self.network.requires_grad_(True)
            if plan.shard:
                shards.cut(self.network, units(self.network), device)
            self.parameters = dict(self.network.named_parameters())
        else:
            self.parameters = low_rank.LowRank(self.network, settings.rank, settings.seed, device).pairs
        self._vectors: dict[tuple, Tensor] = {}

    def task(self, notes: Mapping[str, object]) -> Task:
        """What the training loop needs."""
        loss = self.diffusion_loss(self.null_text, self.settings.min_snr)

        def losses(latents: Tensor, noise: Tensor, level: Tensor, pictures: Sequence[Latent]) -> Tensor:
            return loss(self.latent_format.process_in(latents), noise, level, masks_of(pictures, latents))
        return Task(self.parameters, losses, self.device, self.autocast, self.features, notes)

    def null_text(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The network's output for noisy latents (B, C, h, w) at sigma (B,)."""
        return self.predict(x, sigma, **self._vector(x))

    def _vector(self, x: Tensor) -> dict[str, Tensor]:
        """For SDXL the pooled empty prompt and the picture's size, as its sampler states them for the null text."""
        if not self.model.adm_channels:
            return {}
        shape = tuple(x.shape[2:])
        if shape not in self._vectors:
            pooled = torch.zeros(1, 1280) if self.pooled is None else self.pooled[:1].detach().cpu().float().clone()
            vector = self.model.encode_adm(pooled_output=pooled, height=PIXELS * shape[0], width=PIXELS * shape[1])
            self._vectors[shape] = vector.to(self.device, self.network.dtype)
        return {"y": self._vectors[shape].expand(len(x), -1)}

    def concept(self, trained: Mapping[str, Tensor], made_by: str) -> ModelPatcher:
        """A MODEL with trained weights (those of ``parameters``), independent of them afterwards."""
        source = stated(self.base, made_by)
        if not self.full:
            return apply_adapter(self.base, low_rank.to_adapter(trained, self.features), 1.0, source)
        dtype = self.base.model_dtype()
        content = {key: value.detach().to("cpu", dtype, copy=True) for key, value in trained.items()}
        content |= {feature_key(block): feature.clone() for block, feature in self.features.items()}
        blueprint = Blueprint.of(self.base)
        built = build(content, blueprint, dtype=dtype)
        if is_dynamic(built):  # which reads these very tensors: no second copy
            built.cached_patcher_init = (rebuild, (content, blueprint, dtype))
        return adopt(built, self.base, Concept(Kind.NULL_TEXT, source))

    def files(self, trained: Mapping[str, Tensor], made_by: str, dtype: str
              ) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
        """Tensors and metadata of the concept's file and, of a LoRA, of one for the host's own loader."""
        model = self.concept(trained, made_by)
        found = {"": concept_files.content(model, dtype)}
        if not self.full:
            found["_stock_lora"] = concept_files.content(model, dtype, "stock LoRA", self.base)
        return found


def units(network: nn.Module) -> list[nn.Module]:
    """The parts of a UNet that are computed one after another and hold most of its weights, inner ones first."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    return [*cross_attention_blocks(network).values(),
            *(module for module in network.modules() if isinstance(module, ResBlock))]
