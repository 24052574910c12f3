"""Null text of transformers with a cross-attention: its keys and values for the empty prompt, asked of the host."""

from __future__ import annotations

import math

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nulltext.tokens import Tokens, replaced, watch
from ..streams import still_with_sound
from .building import refuse_bypassed

PROGRESS = (0.1, 0.6)
"""How much of sampling is done at the two noise levels that are tried."""
SIZE = 8
"""Height and width of the latents."""
SAME = 1e-5
"""How much two outputs may differ, relative to their spread, and count as one."""


def null_text_tokens(patcher: ModelPatcher, conditioning: list, seed: int = 0) -> dict[str, Tokens]:
    """Keys and values of every cross-attention under a conditioning, by projection.

    They are found by what they do: whatever the latents and the noise level, these layers are given the same. That
    nothing else of the network reads the text is tried as well, with another text.

    Args:
        patcher: any MODEL that is no UNet; its weight patches (LoRAs) count, attention patches and wrappers do not.
        conditioning: the empty prompt.
        seed: of the latents to try it on.

    Raises:
        ValueError: the network reads text in other ways too, or together with the picture.
    """
    refuse_bypassed(patcher)
    text, extra = conditioning[0]
    conds = {"positive": [[text, extra]], "negative": [[torch.randn_like(text), extra]]}
    conds = {kind: comfy.sampler_helpers.convert_cond(value) for kind, value in conds.items()}
    streams = still_with_sound(patcher, (SIZE, SIZE))
    shapes = [tuple(stream.shape) for stream in streams]
    size = shapes[0] if len(shapes) == 1 else (1, 1, sum(map(math.prod, shapes)))  # packed, as the host's samplers do
    noises = torch.randn((2, *size), generator=torch.Generator().manual_seed(seed))
    model, conds, loaded = comfy.sampler_helpers.prepare_sampling(patcher, noises[0].shape, conds,
                                                                  {"transformer_options": {}})
    try:
        patcher.pre_run()
        noises = noises.to(patcher.load_device)
        more = {"latent_shapes": shapes} if len(shapes) > 1 else {}
        conds = comfy.samplers.process_conds(model, noises[0], conds, patcher.load_device, noises[0], seed=seed, **more)
        with torch.no_grad():
            with watch(model.diffusion_model) as seen:
                for noise, progress in zip(noises, PROGRESS, strict=True):
                    expected = _predict(model, conds["positive"], noise, progress)
            tokens = seen.null_text()
            if not tokens:
                raise ValueError(_joint(patcher))
            with replaced(model.diffusion_model, tokens):
                found = [_predict(model, conds[kind], noises[1], PROGRESS[1]) for kind in ("positive", "negative")]
    finally:
        patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(conds, loaded)
    if any((other - expected).abs().max() > SAME * expected.std() for other in found):
        raise ValueError(_joint(patcher))
    return tokens


def _joint(patcher: ModelPatcher) -> str:
    return (f"{type(patcher.model.model_config).__name__} reads text together with the picture or the noise level, so "
            "its text cannot become constants. Its concept is a fine-tuned model or a LoRA, measured under the empty "
            "prompt: connect that as concept_model, and the empty prompt as negative.")


def _predict(model, cond: list, noise: Tensor, progress: float) -> Tensor:
    """The host's prediction for noise."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    sigma = noise.new_tensor([float(model.model_sampling.percent_to_sigma(progress))])
    return comfy.samplers.calc_cond_batch(model, [cond], noise, sigma, {"transformer_options": {}})[0]
