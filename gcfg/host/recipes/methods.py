"""Named methods with real models: from a preset's name and sockets to a chain of guidances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...guidance import Recipe, presets
from ..models import describe
from ..sampling.chain import Link, chain_of

SECOND = "second prompt"


@dataclass(frozen=True)
class Sockets:
    """What a preset may be given; scales as in its formula, weight between base (0) and fine-tuned model (1)."""

    positive: list | None = None
    conditioning_2: list | None = None
    model: ModelPatcher | None = None
    model_2: ModelPatcher | None = None
    scale: float = 7.5
    scale_2: float = 1.0
    weight: float = 0.0


@dataclass(frozen=True)
class Method:
    """A preset: what its sockets hold, and its recipe."""

    needs: dict[str, str]
    recipe: Callable[[Sockets], Recipe]


PROMPT = {"positive": "the prompt"}
METHODS = {
    "CFG": Method(PROMPT, lambda s: presets.classifier_free(s.scale)),
    "composable diffusion": Method(
        PROMPT | {"conditioning_2": "the second prompt"},
        lambda s: presets.composable({presets.POSITIVE: s.scale, SECOND: s.scale_2})),
    "InstructPix2Pix": Method(
        {"positive": "image and instruction", "conditioning_2": "the image without an instruction"},
        lambda s: presets.instruct_pix2pix(s.scale, s.scale_2)),
    "Perp-Neg": Method(
        PROMPT | {"conditioning_2": "the prompt to avoid"},
        lambda s: presets.perp_neg(s.scale, {presets.NEGATIVE: s.scale_2})),
    "AutoGuidance": Method(PROMPT | {"model_2": "the weaker model"}, lambda s: presets.autoguidance(s.scale)),
    "perturbed-attention guidance": Method(
        PROMPT | {"model": "the sampler's model"}, lambda s: presets.perturbed_attention(s.scale_2, s.scale)),
    "domain guidance": Method(PROMPT | {"model_2": "the fine-tuned model"}, lambda s: presets.domain(s.scale)),
    "personalization guidance": Method(
        PROMPT | {"model": "the sampler's model", "model_2": "the fine-tuned model"},
        lambda s: presets.personalization(s.scale)),
    "class-guided": Method(
        {"positive": "the prompt with the subject's word", "conditioning_2": "the same prompt with its class alone",
         "model_2": "the model that knows the subject"},
        lambda s: presets.class_guided(s.scale, s.scale_2)),
    "concept-centric": Method(
        {"model_2": "the concept model"},
        lambda s: presets.concept_centric(s.scale if s.positive is not None else 0.0, s.scale_2)),
    "concept across control": Method(
        PROMPT | {"model_2": "the concept model"},
        lambda s: presets.concept_across_control(
            s.scale, s.scale_2, presets.UNCONDITIONAL if s.conditioning_2 is None else presets.CLASS)),
    "LoRA guidance": Method(
        PROMPT | {"model_2": "the sampler's model with the LoRA"}, lambda s: presets.lora_guidance(s.scale)),
    "concept on a distilled model": Method(
        PROMPT | {"model_2": "the concept model"},
        lambda s: presets.concept_on_distilled(
            s.scale, presets.UNCONDITIONAL if s.conditioning_2 is None else presets.CLASS)),
}


def chain_for(method: str, sockets: Sockets) -> tuple[Link, ...]:
    """The chain of a named method.

    Raises:
        ValueError: the method needs a socket that is not connected, or another kind of model.
    """
    missing = [f"'{name}' ({what})" for name, what in METHODS[method].needs.items() if getattr(sockets, name) is None]
    if missing:
        raise ValueError(f"The preset {method} needs {' and '.join(missing)}; connect the input.")
    recipe = METHODS[method].recipe(sockets)
    names = {p.model for g in recipe.guidances for p in g.uses}
    models = dict.fromkeys((presets.CONCEPT, presets.TUNED, presets.WEAK), sockets.model_2)
    if presets.PERTURBED in names:
        models[presets.PERTURBED] = perturbed(sockets.model)
    if presets.MIXED in names:
        models[presets.MIXED] = interpolated(sockets.model, sockets.model_2, sockets.weight)
    second = dict.fromkeys((presets.NEGATIVE, presets.IMAGE, presets.CLASS, SECOND), sockets.conditioning_2)
    return chain_of(recipe, models, {presets.POSITIVE: sockets.positive, **second})


def perturbed(model: ModelPatcher) -> ModelPatcher:
    """A clone whose self-attention in the middle block is the identity: softmax(Q K^T) V becomes V (arXiv 2403.17377).

    Raises:
        ValueError: the MODEL has no such block.
    """
    if not isinstance(model.model.diffusion_model, UNetModel):
        raise ValueError(f"Perturbed-attention guidance needs a UNet with a middle block; {describe(model)} has none.")
    clone = model.clone()
    clone.set_model_attn1_replace(_values, "middle", 0)
    return clone


def _values(q: Tensor, k: Tensor, v: Tensor, extra_options: dict, mask: Tensor | None = None) -> Tensor:
    return v


def interpolated(base: ModelPatcher, tuned: ModelPatcher, weight: float) -> ModelPatcher:
    """A MODEL with the weights ``base + weight (tuned - base)`` (arXiv 2508.00319), as the host merges models."""
    if weight in (0.0, 1.0):
        return tuned if weight else base
    mixed = base.clone()
    for key, patch in tuned.get_key_patches("diffusion_model.").items():
        mixed.add_patches({key: patch}, weight, 1.0 - weight)
    return mixed
