"""Shared self-attention: one picture looks at the tokens of others while it is made.

The mechanism of FreeCustom (arXiv 2405.13870, multi-reference self-attention), VisCtrl (arXiv 2406.06258) and
StoryMaker (arXiv 2409.12576): the keys and values of reference pictures, noised to the same level and run in the same
batch, join those of the picture. Nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_to_references(attend: Attention, q: Tensor, k: Tensor, v: Tensor, group: int, text: int = 0,
                         seen: Sequence[Tensor] | None = None) -> Tensor:
    """Self-attention of a batch in which each picture is followed by its references.

    A picture attends to its own tokens and to those of its references; a reference to its own alone, so that it runs
    as it would by itself.

    Args:
        attend: attention of (q, k, v); its result has the rows of q first.
        q, k, v: (rows, tokens, channels) or (rows, heads, tokens, channels).
        group: a picture and its references: rows 0, ``group``, 2 ``group``, ... are pictures.
        text: so many tokens at the front of each row are text, which is not shared.
        seen: for each reference, which of its other tokens are shared, bool (tokens,); all if None.
    """
    def joined(t: Tensor) -> Tensor:
        shared = [t[r::group, ..., text:, :] for r in range(1, group)]
        if seen is not None:
            shared = [tokens[..., which.to(t.device), :] for tokens, which in zip(shared, seen, strict=True)]
        return torch.cat([t[::group], *shared], dim=-2)

    reference = torch.arange(q.shape[0], device=q.device) % group != 0
    pictures = attend(q[::group], joined(k), joined(v))
    out = pictures.new_empty(q.shape[0], *pictures.shape[1:])
    out[::group] = pictures
    out[reference] = attend(q[reference], k[reference], v[reference])
    return out


def token_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of the tokens of a latent of this height and width, at the scale (1, 1/2, 1/4, ...) that has
    so many.

    Raises:
        ValueError: no scale has that number of tokens.
    """
    for scale in (1, 2, 4, 8, 16, 32):
        grid = math.ceil(height / scale), math.ceil(width / scale)
        if grid[0] * grid[1] == tokens:
            return grid
    raise ValueError(f"{tokens} tokens are no grid over a latent of {height} x {width}.")


def tokens_within(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which tokens of a grid lie within a mask (H, W), bool (tokens,): those covered by half, or the most covered."""
    covered = F.interpolate(mask[None, None].float(), size=grid, mode="area").flatten()
    return covered >= min(0.5, float(covered.max()))
