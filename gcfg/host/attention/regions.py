"""Where the words of a prompt act in a picture, found in its first steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.regions import positions_of, word_attention
from ...attention.shared import token_grid
from ..models import describe
from .calls import with_attention
from .shared import image_tokens

KEY = "gcfg_word_maps"
POSITIVE = 0
LAYOUTS = {
    frozenset("l"): ("l",), frozenset("h"): ("h",), frozenset("g"): ("g",), frozenset("lg"): ("l",),
    frozenset(("l", "g", "t5xxl")): ("l", "l t5xxl", "t5xxl"), frozenset(("l", "t5xxl")): ("t5xxl",),
}
"""Whose tokens a conditioning may consist of, by the encoders of a CLIP; those of CLIP cut a prompt alike."""


def word_positions(clip, prompt: str, words: Sequence[str], length: int) -> list[list[int]]:
    """Where each word stands among the tokens of an encoded prompt, every occurrence in every encoder's part.

    Args:
        length: tokens of the prompt's conditioning.

    Raises:
        ValueError: a word does not occur in the prompt, or a text encoder of another kind.
    """
    def ids(text: str, name: str) -> list[int]:
        tokens = [token[0] for chunk in clip.tokenize(text)[name] for token in chunk]
        return [token if isinstance(token, int) else -1 for token in tokens]

    whole = {name: ids(prompt, name) for name in clip.tokenize(prompt)}
    layouts = [layout.split() for layout in LAYOUTS.get(frozenset(whole), ())]
    parts = next((names for names in layouts if sum(len(whole[name]) for name in names) == length), None)
    if parts is None:
        raise ValueError("Words cannot be found in the prompts of this text encoder "
                         f"({', '.join(sorted(whole))}); draw the masks instead.")
    found: list[list[int]] = [[] for _ in words]
    start = 0
    for name in parts:
        empty = ids("", name)
        for places, word in zip(found, words, strict=True):
            tokens = ids(word, name)
            before = int(tokens[0] == empty[0])  # CLIP's texts have a start, T5's none
            tokens = tokens[before:tokens.index(empty[before], before)]
            places += [start + place for place in positions_of(tokens, whole[name])]
        start += len(whole[name])
    for places, word in zip(found, words, strict=True):
        if not places:
            raise ValueError(f"The word '{word}' does not occur in the prompt '{prompt}'; name words as they stand "
                             "there.")
    return found


def word_maps(model: ModelPatcher, positions: Sequence[Sequence[int]], length: int,
              sample: Callable[[ModelPatcher], object]) -> Tensor:
    """Attention to words during a sampling run, (B, words, H, W) on the cells of the latent.

    The mean over all cross-attentions and calls of the run, as DAAM takes it (arXiv 2210.04885, equation 4); of a
    joint attention that part in which the picture attends to the text.

    Args:
        positions: of each word among the tokens of the positive prompt.
        length: how many tokens that has.
        sample: runs the MODEL that it is given.

    Raises:
        ValueError: the MODEL is of another family.
    """
    if not isinstance(model.model.diffusion_model, UNetModel | MMDiT | Flux):
        raise ValueError(f"{describe(model)} has no attention in which regions are found: U-Nets (SD1.5, SDXL), SD3 "
                         "and Flux have. Draw the masks instead.")
    maps: list[Tensor] = []

    def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        roles = options["cond_or_uncond"]
        rows = torch.tensor([role == POSITIVE for role in roles for _ in range(x.shape[0] // len(roles))])
        network, text = executor.class_obj.diffusion_model, c_crossattn.shape[1]
        image = image_tokens(network, x)

        def attention(attend, cross, q, k, v, heads, mask):
            joint = image is not None and q.shape[-2] >= text + image  # SD3.5 also has attentions without text
            if (cross or joint) and rows.any():
                everywhere = [[p for p in range(text) if p % length in at] for at in positions]
                picture = q[rows][..., text:text + image, :] if joint else q[rows]
                weights = word_attention(picture, k[rows], heads, everywhere)
                grid = token_grid(*x.shape[-2:], weights.shape[-1])
                maps.append(F.interpolate(weights.unflatten(-1, grid), x.shape[-2:], mode="bilinear").cpu())
            return attend(q, k, v)

        return executor(x, t, c_concat, c_crossattn, control, with_attention(network, options, attention), **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    sample(watched)
    return torch.stack(maps).mean(dim=0)


def first_steps(steps: int, until: float) -> int:
    """How many of the steps are run to find regions: the part ``until`` of them, at least one."""
    return min(steps, max(1, math.ceil(steps * until)))
