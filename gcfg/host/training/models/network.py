"""The network of a host MODEL as plain torch modules with weights of its own, which can be differentiated.

Nothing here touches the MODEL. All of it must run outside inference mode, in which the host executes nodes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn import functional as F

from ....nulltext.attention import replace_cross_attention
from ....nulltext.formats.keymap import feature_key
from ....training.losses.objectives import DiffusionLoss
from ....training.memory import Plan
from ...concepts.building import Blueprint, fill_buffers, weights
from ...streams import without_sound
from . import frozen
from .gradients import differentiated

PIXELS = 8
"""Pixels along each side of a latent's cell."""


class RMSNorm(nn.RMSNorm):
    """torch's, with what the host's function for its weights looks for."""

    bias, weight_function, bias_function = None, (), ()


class Embedding(nn.Embedding):
    """torch's, which takes the host's ``out_dtype``."""

    def forward(self, index: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        found = super().forward(index)
        return found if out_dtype is None else found.to(out_dtype)


class PlainOperations:
    """torch's own layers, for the host's network without its casts, hooks and offloading."""

    Linear, Conv1d, Conv2d, Conv3d, Embedding = frozen.Linear, nn.Conv1d, frozen.Conv2d, nn.Conv3d, Embedding
    GroupNorm, LayerNorm, RMSNorm = nn.GroupNorm, nn.LayerNorm, RMSNorm
    ConvTranspose1d, ConvTranspose2d = nn.ConvTranspose1d, nn.ConvTranspose2d

    @staticmethod
    def conv_nd(dims: int, *args, **kwargs) -> nn.Module:
        kinds = {2: frozen.Conv2d, 3: nn.Conv3d}
        if dims not in kinds:
            raise ValueError(f"networks of {dims} dimensions cannot be trained, only those of 2 or 3.")
        return kinds[dims](*args, **kwargs)


def attention(func, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *args,
              skip_reshape: bool = False, skip_output_reshape: bool = False, enable_gqa: bool = False,
              **kwargs) -> Tensor:
    """Scaled dot product attention with a gradient, in the place of the host's kernels, which may have none.

    Args:
        func: the host's kernel, not called.
        q, k, v: (B, T, heads * C), or (B, heads, T, C) if ``skip_reshape``.
        mask: added to the scores, or which of them count.
        skip_output_reshape: give (B, heads, T, C) instead of (B, T, heads * C).
    """
    if not skip_reshape:
        q, k, v = (t.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    options = {"enable_gqa": True} if enable_gqa else {}
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
    return mixed if skip_output_reshape else mixed.transpose(1, 2).flatten(2)


@contextmanager
def differentiable() -> Iterator[None]:
    """Within, the host takes the ways that have a gradient where it has others too, for forward and backward passes."""
    management = comfy.model_management
    if not hasattr(management, "in_training"):  # an older host has no others
        yield
        return
    before, management.in_training = management.in_training, True
    try:
        yield
    finally:
        management.in_training = before


class Network:
    """A base MODEL's network over plain layers, frozen, with copies of its weights (its LoRAs merged).

    Args:
        base: the MODEL, of any class whose network is built from the host's operations.
        plan: how it is trained.
        device: where.
        features: null-text features by transformer block, whose cross-attention they replace.
        updated: whether any of its weights will be trained; those of a LoRA's base can stay as they were loaded.

    Raises:
        ValueError: a model that cannot be trained, such as an inpainting model.
    """

    def __init__(self, base: ModelPatcher, plan: Plan, device: torch.device,
                 features: Mapping[str, Tensor] | None = None, updated: bool = True):
        self.base, self.device, self.features, self.updated = base, device, dict(features or {}), updated
        self.resident = plan.resident
        self.filled_on = torch.device("cpu") if plan.shard else device  # the parts are moved one by one
        self.latent_format = base.get_model_object("latent_format")
        dtype = torch.bfloat16 if plan.precision == "bfloat16" else torch.float32
        self.model = self._build(dtype)
        self.network: nn.Module = self.model.diffusion_model
        self.writes = not isinstance(self.network, unet_class())  # transformers' blocks, into what autograd keeps
        self.sampling = _own(base.get_model_object("model_sampling")).to(device)
        self.model.model_sampling = _output_only(self.sampling)
        on_gpu = device.type == "cuda" and dtype == torch.float32 and torch.cuda.is_bf16_supported()
        self.autocast = torch.bfloat16 if on_gpu else None

    def _build(self, dtype: torch.dtype):
        """The host's model over plain layers."""
        blueprint = Blueprint(self.base.model.model_config, self.base.model.model_type, self.base.load_device,
                              self.base.offload_device, {})
        config = blueprint.new_config()
        reads = config.unet_config.get("in_channels", self.latent_format.latent_channels)
        if isinstance(self.base.model.diffusion_model, unet_class()) and reads != self.latent_format.latent_channels:
            raise ValueError(f"{type(config).__name__} reads {reads} channels where its latents have "
                             f"{self.latent_format.latent_channels} (an inpainting or editing model); train on the "
                             "text-to-image model of the same family.")
        config.custom_operations = PlainOperations
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, "", device="meta")
        if self.features:
            replace_cross_attention(model.diffusion_model, self.features)
        self._fill(model.diffusion_model, dtype)
        return model

    def _fill(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Give a network without weights those of the base."""
        names, stored, kept = network.state_dict().keys(), frozen.stored(self.base), set()
        if self.updated:
            plain = {key: value for key, value in weights(self.base).items() if key in names}
        else:
            kept = frozen.keep(network, self.base, stored, dtype, self.device, self.resident)
            plain = frozen.patched(self.base, stored, names & stored.keys() - kept)
        content = {key: value.to(self.filled_on, dtype) for key, value in plain.items()} | {
            feature_key(block): feature.to(self.device) for block, feature in self.features.items()}
        lacking, unknown = network.load_state_dict(content, strict=False, assign=True)
        if unknown or set(lacking) - kept:
            raise ValueError(f"the model's weights do not fit its class: {[*unknown, *lacking][:3]}")
        fill_buffers(network, dict(self.base.model.diffusion_model.named_buffers()))
        for module in network.modules():  # not ``to``: it would move the weights that wait elsewhere
            module._buffers.update({name: buffer.to(self.device) for name, buffer in module._buffers.items()
                                    if buffer is not None})
        network.requires_grad_(False)

    def predict(self, x: Tensor, sigma: Tensor, **conditions: object) -> Tensor:
        """The network's output for noisy latents (B, C, h, w) at sigma (B,), by the host's own way into it.

        Args:
            conditions: what the model class reads, see ``conditions``; ``y`` (B, C) for the null text of SDXL.
        """
        options = {"optimized_attention_override": attention}
        packed, shapes = without_sound(x, self.latent_format)
        with differentiated() if self.writes and torch.is_grad_enabled() else nullcontext():
            output = self.model.apply_model(packed, sigma, transformer_options=options, **conditions)
        return output if len(shapes) == 1 else output[..., :x[0].numel()].view_as(x)

    def conditions(self, conditionings: list, like: Tensor) -> dict[str, object]:
        """What the network reads besides the latents, as the host makes it of conditionings, one a row of ``like``.

        Gradients pass through. Each is what CLIP Text Encode gives: [[features (1, T, C), {"pooled_output": ...}]].
        """
        rows = [self._row(conditioning, like[k:k + 1]) for k, conditioning in enumerate(conditionings)]
        together = {name: condition.concat([row[name] for row in rows[1:]]) for name, condition in rows[0].items()}
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in together.items()}

    def _row(self, conditioning: list, like: Tensor) -> dict[str, object]:
        features, extra = conditioning[0]
        stated = [{**extra, "cross_attn": features, "model_conds": {}}]
        noise, shapes = without_sound(like, self.latent_format)
        made = comfy.samplers.encode_model_conds(self.model.extra_conds, stated, noise, self.device, "positive",
                                                 latent_shapes=shapes)
        return {name: condition.process_cond(batch_size=1, area=None, device=self.device)
                for name, condition in made[0]["model_conds"].items()}

    def diffusion_loss(self, predict, min_snr: float = 0.0) -> DiffusionLoss:
        """The loss of ``predict(x, sigma)`` in this model's parameterisation."""
        return DiffusionLoss(predict, self.sampling.noise_scaling, self.sampling.calculate_denoised,
                             self.sampling.sigmas, min_snr)


def unet_class() -> type:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel


def _own(sampling: nn.Module) -> nn.Module:
    """A copy of a model sampling whose buffers were not made in inference mode."""
    own = copy.deepcopy(sampling)
    for name, buffer in list(own.named_buffers()):
        module, _, leaf = name.rpartition(".")
        own.get_submodule(module)._buffers[leaf] = torch.tensor(buffer.tolist(), dtype=buffer.dtype)
    return own


def _output_only(sampling: nn.Module) -> nn.Module:
    """The same model sampling for the host's model, which then gives its network's output, not the denoised latent."""
    own = copy.copy(sampling)
    own.calculate_denoised = lambda sigma, output, x: output
    return own
