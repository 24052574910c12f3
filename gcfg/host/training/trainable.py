"""A host model made trainable: its network as plain torch modules with weights of its own, and handed back as a MODEL.

Nothing here touches the base MODEL. All of it must run outside inference mode, in which the host executes nodes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...nulltext.attention import cross_attention_blocks, replace_cross_attention
from ...nulltext.identify import Kind
from ...nulltext.keymap import feature_key, null_text_shapes
from ...training import low_rank
from ...training.memory import Plan
from ...training.objectives import DiffusionLoss
from ...training.settings import Settings
from ...training.task import Task
from ..concepts.concept import Blueprint, Concept, adopt, apply_adapter, build, shapes, stated, weights
from ..concepts.convert import rebuild
from ..models import is_dynamic

PIXELS = 8
"""Pixels along each side of a latent's cell."""


class PlainOperations:
    """torch's own layers, for the host's network without its casts, hooks and offloading."""

    Linear, Conv2d, GroupNorm, LayerNorm, Embedding = nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding

    @staticmethod
    def conv_nd(dims: int, *args, **kwargs) -> nn.Module:
        if dims != 2:
            raise ValueError(f"only networks of two dimensions can be trained, not of {dims}.")
        return nn.Conv2d(*args, **kwargs)


def attention(func, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs) -> Tensor:
    """Scaled dot product attention of (B, T, heads * C), which has a gradient; the host's kernels may have none."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Trainable:
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
        self.base, self.settings, self.device = base, settings, device
        self.features = {block: feature.detach().cpu().float().clone() for block, feature in features.items()}
        self.latent_format = base.get_model_object("latent_format")
        self.full = settings.method == "full"
        dtype = torch.bfloat16 if plan.precision == "bfloat16" else torch.float32
        self.model = self._build(dtype)
        self.network: nn.Module = self.model.diffusion_model
        self.pooled = conditioning[0][1].get("pooled_output")
        self.sampling = _own(base.get_model_object("model_sampling")).to(device)
        if plan.checkpointing:
            for block in cross_attention_blocks(self.network).values():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if self.full:
            self.network.requires_grad_(True)
            self.parameters = dict(self.network.named_parameters())
        else:
            self.parameters = low_rank.LowRank(self.network, settings.rank, settings.seed).pairs
        on_gpu = device.type == "cuda" and dtype == torch.float32 and torch.cuda.is_bf16_supported()
        self.autocast = torch.bfloat16 if on_gpu else None
        self._vectors: dict[tuple, Tensor] = {}

    def _build(self, dtype: torch.dtype):
        """The host's model over plain layers, with copies of the base's weights."""
        blueprint = Blueprint.of(self.base)
        config = blueprint.new_config()
        if config.unet_config.get("in_channels") != self.latent_format.latent_channels:
            raise ValueError(f"{type(config).__name__} reads {config.unet_config.get('in_channels')} channels where "
                             f"its latents have {self.latent_format.latent_channels} (an inpainting or editing model); "
                             "train on the text-to-image model of the same family.")
        config.custom_operations = PlainOperations
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, "", device="meta")
        replace_cross_attention(model.diffusion_model, self.features)
        plain = weights(self.base)
        content = {key: plain[key].to(dtype) for key in null_text_shapes(shapes(self.base)) if key in plain}
        content |= {feature_key(block): feature for block, feature in self.features.items()}
        model.diffusion_model.load_state_dict(content, strict=True, assign=True)
        model.diffusion_model.to(self.device).requires_grad_(False)
        return model

    def task(self, notes: Mapping[str, object]) -> Task:
        """What the training loop needs."""
        loss = DiffusionLoss(self.predict, self.sampling.noise_scaling, self.sampling.calculate_denoised,
                             self.sampling.sigmas, self.settings.min_snr)

        def losses(latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
            return loss(self.latent_format.process_in(latents), noise, level)
        return Task(self.parameters, losses, self.device, self.autocast, self.features, notes)

    def predict(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The network's output for noisy latents (B, C, h, w) at sigma (B,)."""
        scaled = self.sampling.calculate_input(sigma, x).to(self.network.dtype)
        options = {"optimized_attention_override": attention}
        return self.network(scaled, self.sampling.timestep(sigma).float(), transformer_options=options,
                            **self._vector(x))

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


def _own(sampling: nn.Module) -> nn.Module:
    """A copy of a model sampling whose buffers were not made in inference mode."""
    own = copy.deepcopy(sampling)
    for name, buffer in list(own.named_buffers()):
        module, _, leaf = name.rpartition(".")
        own.get_submodule(module)._buffers[leaf] = torch.tensor(buffer.tolist(), dtype=buffer.dtype)
    return own
