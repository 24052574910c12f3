"""Where the words of a prompt act in a picture, found in its first steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.regions import positions_of, word_attention
from ...attention.shared import token_grid
from ..models import describe
from .calls import with_attention

KEY = "gcfg_word_maps"
POSITIVE = 0


def word_positions(clip, prompt: str, words: Sequence[str]) -> tuple[list[list[int]], int]:
    """Where each word stands among the tokens of a prompt, and how many tokens the prompt is encoded to.

    Raises:
        ValueError: a word does not occur in the prompt.
    """
    def ids(text: str) -> list[int]:
        chunks = next(iter(clip.tokenize(text).values()))  # all encoders of a U-Net cut a prompt alike
        return [token[0] if isinstance(token[0], int) else -1 for chunk in chunks for token in chunk]
    whole = ids(prompt)
    end = ids("")[1]
    found = []
    for word in words:
        tokens = ids(word)[1:]
        found.append(positions_of(tokens[:tokens.index(end)], whole))
        if not found[-1]:
            raise ValueError(f"The word '{word}' does not occur in the prompt '{prompt}'; name words as they stand "
                             "there.")
    return found, len(whole)


def word_maps(model: ModelPatcher, positions: Sequence[Sequence[int]], length: int,
              sample: Callable[[ModelPatcher], object]) -> Tensor:
    """Attention to words during a sampling run, (B, words, H, W) on the cells of the latent.

    The mean over all cross-attentions and calls of the run, as DAAM takes it (arXiv 2210.04885, equation 4).

    Args:
        positions: of each word among the tokens of the positive prompt.
        length: how many tokens that has.
        sample: runs the MODEL that it is given.

    Raises:
        ValueError: the MODEL is no U-Net.
    """
    if not isinstance(model.model.diffusion_model, UNetModel):
        raise ValueError(f"{describe(model)} has no cross-attention to find regions in: SD1.5 and SDXL have. Draw the "
                         "masks instead.")
    maps: list[Tensor] = []

    def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        roles = options["cond_or_uncond"]
        rows = torch.tensor([role == POSITIVE for role in roles for _ in range(x.shape[0] // len(roles))])

        def attention(attend, cross, q, k, v, heads, mask):
            if cross and rows.any():
                everywhere = [[p for p in range(k.shape[-2]) if p % length in at] for at in positions]
                weights = word_attention(q[rows], k[rows], heads, everywhere)
                grid = token_grid(*x.shape[-2:], weights.shape[-1])
                maps.append(F.interpolate(weights.unflatten(-1, grid), x.shape[-2:], mode="bilinear").cpu())
            return attend(q, k, v)

        return executor(x, t, c_concat, c_crossattn, control, with_attention(options, attention), **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    sample(watched)
    return torch.stack(maps).mean(dim=0)


def first_steps(steps: int, until: float) -> int:
    """How many of the steps are run to find regions: the part ``until`` of them, at least one."""
    return min(steps, max(1, math.ceil(steps * until)))
