"""Null-text concept models made from MODELs: conversion with calibration, and extraction of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nulltext import calibrate
from ...nulltext.formats import adapter
from ...nulltext.formats.identify import Kind, check_keys, is_unet
from ...nulltext.formats.keymap import feature_blocks, feature_key, null_text_shapes
from ...nulltext.tokens import null_token_shapes, projections, tensors_of
from .building import UNET, Blueprint, architecture, build, refuse_bypassed, shapes, weights
from .concept import CONCEPT, READS_TEXT, Concept, adopt, apply_adapter, in_words, stated
from .tokens import null_text_tokens

LATENT_SIZE = 32
"""Height and width of the latents to calibrate on: features within 0.2 % of those at 64, in a seventh of the time
(measured on a UNet of one level)."""
BATCH = 4
"""Latents per forward pass; the features do not depend on it."""


def null_text_features(patcher: ModelPatcher, conditioning: list | None = None, latents: int = calibrate.LATENTS,
                       seed: int = 0, size: int = LATENT_SIZE) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Features and residuals of a MODEL by transformer block, predicting with the host's model and memory management.

    The MODEL's weight patches (LoRAs) count, its attention patches and wrappers do not.

    Args:
        patcher: any MODEL with cross-attention.
        conditioning: the empty prompt; None stands for all-zero text.
        latents: how many latents, at every noise level of ``calibrate.TIMESTEPS``.
        seed: of the latents.
        size: height and width of the latents.
    """
    shapes(patcher)
    refuse_bypassed(patcher)
    channels = patcher.get_model_object("latent_format").latent_channels
    pictures, noise = calibrate.draw(latents, channels, size, seed)
    conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning or zero_conditioning(patcher))}
    options = {"transformer_options": {}}
    bar = comfy.utils.ProgressBar(len(calibrate.TIMESTEPS) * -(-latents // BATCH))
    model, conds, loaded = comfy.sampler_helpers.prepare_sampling(patcher, noise[:BATCH].shape, conds, options)
    try:
        patcher.pre_run()
        conds = comfy.samplers.process_conds(model, noise[:BATCH], conds, patcher.load_device, pictures[:BATCH],
                                             seed=seed)
        with torch.no_grad(), calibrate.measure(model.diffusion_model) as means:
            for timestep in calibrate.TIMESTEPS:
                sigma = model.model_sampling.percent_to_sigma(1.0 - timestep / 999.0)
                for picture, grain in zip(pictures.split(BATCH), noise.split(BATCH), strict=True):
                    _predict(model, conds["positive"], picture.to(patcher.load_device), grain.to(patcher.load_device),
                             float(sigma), options)
                    bar.update(1)
    finally:
        patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(conds, loaded)
    return calibrate.features(means), {name: mean.residual for name, mean in means.items()}


def _predict(model, cond: list, pictures: Tensor, noise: Tensor, sigma: float, options: dict) -> None:
    """One forward pass of the host's model on noisy latents, for what hooks see of it."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    sigmas = torch.full((len(noise),), sigma, device=noise.device)
    x = model.model_sampling.noise_scaling(sigmas.view(-1, 1, 1, 1), noise, pictures)
    comfy.samplers.calc_cond_batch(model, [cond], x, sigmas, options)


def zero_conditioning(patcher: ModelPatcher) -> list:
    """All-zero text in the widths that the model reads, as SDXL pipelines use it for the empty prompt."""
    config = patcher.model.model_config.unet_config
    pooled = {"pooled_output": torch.zeros(1, 1280)} if config.get("adm_in_channels") else {}
    return [[torch.zeros(1, 77, config["context_dim"]), pooled]]


def convert(patcher: ModelPatcher, conditioning: list | None = None, latents: int = calibrate.LATENTS, seed: int = 0,
            size: int = LATENT_SIZE) -> tuple[ModelPatcher, str]:
    """The null-text form of a MODEL, with weights of its own, and in words how exact it is.

    A UNet's cross-attention becomes a constant, with the residual of every block in a table. A transformer's keys and
    values of the text become constants (see ``null_text_tokens``), exactly. LoRAs on the MODEL stay patches of the new
    one, as far as they touch weights that are left.
    """
    names = architecture(patcher)
    if is_unet(names):
        features, residual = null_text_features(patcher, conditioning, latents, seed, size)
        shown = {feature_key(block): feature for block, feature in features.items()}
        text = "the connected conditioning" if conditioning else "all-zero text"
        made_by = f"{latents} latents at t {', '.join(map(str, calibrate.TIMESTEPS))}, seed {seed}, {text}"
        report = f"{calibrate.table(residual)}\ncalibrated on {text}, seed {seed}"
        return _null_text(patcher, null_text_shapes(names), shown, Kind.NULL_TEXT, made_by, residual), report
    if not conditioning:
        raise ValueError("the null text of a transformer is made of its empty prompt; connect that as 'conditioning'.")
    tokens = null_text_tokens(patcher, conditioning, seed)
    shown = tensors_of(tokens)
    kept = null_token_shapes(names, shown)
    return _null_text(patcher, kept, shown, Kind.NULL_TOKENS, "the connected conditioning", {}), in_words(tokens)


def _null_text(patcher: ModelPatcher, names: Iterable[str], constants: dict[str, Tensor], kind: Kind, made_by: str,
               residual: Mapping[str, float]) -> ModelPatcher:
    """A MODEL of the weights that are left and of the constants."""
    raw = weights(patcher, patched=False)
    kept = {key: raw[key] for key in names if key in raw}
    content, blueprint = kept | constants, Blueprint.of(patcher)
    built = build(content, blueprint, dtype=patcher.model_dtype())
    if hasattr(built, "is_dynamic") and built.is_dynamic():  # which reads these very tensors: no second copy
        built.cached_patcher_init = (rebuild, (content, blueprint, patcher.model_dtype()))
    built.patches = {key: list(patches) for key, patches in patcher.patches.items() if key.removeprefix(UNET) in kept}
    return adopt(built, patcher, Concept(kind, stated(patcher, f"converted: {made_by}", residual)))


def rebuild(content: dict[str, Tensor], blueprint: Blueprint, dtype: torch.dtype, disable_dynamic: bool = False
            ) -> ModelPatcher:
    """The bare MODEL again, for hosts that load a model again by themselves."""
    return build(content, blueprint, dtype, disable_dynamic)


def extract(base: ModelPatcher, concept: ModelPatcher, rank: int = 32, target_error: float = 0.0,
            dtype: torch.dtype = torch.float32) -> tuple[ModelPatcher, str]:
    """A clone of the base with an adapter that approximates the concept MODEL, and what the approximation lost.

    Args:
        base: the model that the concept was made from.
        concept: a null-text or full fine-tuned MODEL with weights of its own.
        rank: the rank of every layer, where ``target_error`` is 0.
        target_error: relative error per layer for which the smallest rank is chosen.
        dtype: type of the adapter.
    """
    known = concept.attachments.get(CONCEPT)
    if known is not None and known.adapter is not None:
        raise ValueError("the concept model already is a base with an adapter; save it with Save Concept Model.")
    names, content = architecture(base), weights(concept)
    if projections(content):
        raise ValueError("the concept model's keys and values of the text are constants, which an adapter of a "
                         "transformer cannot hold; connect the fine-tuned model from before Convert to Null-Text "
                         "Model. Its adapter is a LoRA, measured under the empty prompt.")
    kind = Kind.NULL_TEXT if feature_blocks(content) else Kind.FULL
    check_keys(content, null_text_shapes(names) if kind is Kind.NULL_TEXT else names, "The concept model", kind)
    device = comfy.model_management.get_torch_device()
    device = "cpu" if device.type == "mps" else device  # which has no float64
    bar = comfy.utils.ProgressBar(len(content))

    def progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    wanted = (None, target_error) if target_error > 0 else (rank, 0.0)
    made, report = adapter.extract(weights(base), content, *wanted, dtype, device, progress)
    chosen = f"target error {target_error:g}" if target_error > 0 else f"rank {rank}"
    made_by = f"extracted with {chosen}, {report.total:.2%} of the change lost"
    source = stated(base, made_by, known.provenance.residual if known else None,
                    known.provenance.notes if known else "")
    report = str(report) if is_unet(names) else f"{report}\n{READS_TEXT}"
    return apply_adapter(base, made, 1.0, source), report

