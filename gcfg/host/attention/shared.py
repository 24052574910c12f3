"""Shared self-attention as a patch on a MODEL: its pictures look at reference pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.shared import attend_to_references, token_grid, tokens_within
from ..models import describe
from .calls import with_attention

KEY = "gcfg_shared_attention"


@dataclass(frozen=True, eq=False)
class References:
    """Reference pictures.

    Attributes:
        latents: (R, C, H, W) as the VAE gives them, of the size of the pictures to be made.
        masks: what of them may be looked at, (1 or R, H', W') of any size; everything if None.
        start, end: sampling progress during which they are looked at.
        seed: of the noise that takes them to each noise level.
    """

    latents: Tensor
    masks: Tensor | None = None
    start: float = 0.0
    end: float = 1.0
    seed: int = 0

    @property
    def group(self) -> int:
        """Rows of a picture with its references."""
        return 1 + self.latents.shape[0]

    def noised(self, model, sigmas: Tensor) -> Tensor:
        """The references at noise levels (B,), (B, R, C, H, W)."""
        latents = model.process_latent_in(self.latents).to(sigmas.device, torch.float32)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(self.seed)).to(latents)
        scaled = [model.model_sampling.noise_scaling(s.expand(len(latents)), noise, latents) for s in sigmas.float()]
        return torch.stack(scaled)

    def seen(self, tokens: int) -> list[Tensor] | None:
        """Which tokens of each reference may be looked at, at a scale with so many."""
        if self.masks is None:
            return None
        grid = token_grid(*self.latents.shape[-2:], tokens)
        within = [tokens_within(mask, grid) for mask in self.masks]
        return within if len(within) == len(self.latents) else within * len(self.latents)


def share_attention(model: ModelPatcher, references: References) -> ModelPatcher:
    """A clone of a MODEL whose pictures also attend to reference pictures.

    Rows of its batches are doubled (with one reference): each picture is followed by its references, under the same
    conditioning. In U-Nets the self-attention is shared, in SD3 and Flux the image tokens of the joint attention.

    Raises:
        ValueError: a network of another family, latents of another kind, masks of another number.
    """
    if not isinstance(model.model.diffusion_model, UNetModel | MMDiT | Flux):
        raise ValueError(f"{describe(model)} cannot share its attention: U-Nets (SD1.5, SDXL), SD3 and Flux can.")
    channels = model.get_model_object("latent_format").latent_channels
    if references.latents.ndim != 4 or references.latents.shape[1] != channels:
        raise ValueError(f"The reference is a latent of shape {tuple(references.latents.shape)}, but {describe(model)} "
                         "works on others; encode the reference picture with the VAE that belongs to the model.")
    if references.masks is not None and len(references.masks) not in (1, len(references.latents)):
        raise ValueError(f"{len(references.masks)} masks for {len(references.latents)} reference pictures; give one, "
                         "or one for each.")

    def apply_model(executor, x, t, *args, **kwargs):
        sampling = executor.class_obj.model_sampling
        inside = sampling.percent_to_sigma(references.end) <= float(t[0]) <= sampling.percent_to_sigma(references.start)
        return run_with_references(executor, references, x, t, *args, **kwargs) if inside else executor(
            x, t, *args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    return patched


def run_with_references(executor, references: References, x, t, c_concat=None, c_crossattn=None, control=None,
                        transformer_options=None, **kwargs) -> Tensor:
    """The host's ``apply_model`` on pictures x (B, C, H, W) at noise levels t (B,), with references beside them."""
    if x.shape[1:] != references.latents.shape[1:]:
        height, width = (8 * n for n in x.shape[-2:])
        raise ValueError(f"The reference picture has another size than the picture to be made: scale it to about "
                         f"{width} x {height} pixels before VAE Encode.")
    if "ref_latents" in kwargs:
        raise ValueError("Shared Attention cannot be combined with reference latents of an editing model; leave one "
                         "of them out.")
    group, rows = references.group, x.shape[0]
    beside = references.noised(executor.class_obj, t)
    x = torch.cat([x[:, None], beside.to(x)], dim=1).flatten(0, 1)
    network = executor.class_obj.diffusion_model
    image = image_tokens(network, x)

    def attention(attend, cross, q, k, v, heads, mask):
        if cross:
            return attend(q, k, v)
        if mask is not None:
            raise ValueError("Shared Attention cannot be combined with a patch that masks the self-attention; leave "
                             "one of them out.")
        v = v.reshape(k.shape)  # SD3 hands over v with its heads apart, q and k without
        text = k.shape[-2] - image if image else 0
        return attend_to_references(attend, q, k, v, group, text, references.seen(k.shape[-2] - text))

    options = with_attention(network, transformer_options or {}, attention)
    repeated = {name: _repeated(value, rows, group) for name, value in kwargs.items()}
    out = executor(x, t.repeat_interleave(group, 0), _repeated(c_concat, rows, group),
                   _repeated(c_crossattn, rows, group), _without_references(_repeated(control, rows, group), group),
                   options, **repeated)
    return out[::group]


def _repeated(value, rows: int, group: int):
    """Tensors with a row for each picture, in lists and dictionaries, with a row for each of its references, too."""
    if isinstance(value, dict):
        return {k: _repeated(v, rows, group) for k, v in value.items()}
    if isinstance(value, list):
        return [_repeated(v, rows, group) for v in value]
    per_row = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows
    return value.repeat_interleave(group, 0) if per_row else value


def _without_references(control, group: int):
    """ControlNets act on the pictures alone."""
    if isinstance(control, dict):
        return {k: _without_references(v, group) for k, v in control.items()}
    if isinstance(control, list):
        return [_without_references(v, group) for v in control]
    if isinstance(control, Tensor) and control.shape[0] % group == 0:
        picture = torch.arange(control.shape[0], device=control.device) % group == 0
        return control * picture.view(-1, *[1] * (control.ndim - 1)).to(control)
    return control


def image_tokens(network, x: Tensor) -> int | None:
    """Tokens of a latent x (B, C, H, W) in a network's joint attention; None for a U-Net, which has several scales."""
    if isinstance(network, UNetModel):
        return None
    patch = network.patch_size
    return math.ceil(x.shape[-2] / patch) * math.ceil(x.shape[-1] / patch)
