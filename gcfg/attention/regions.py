"""Regions of a picture from the attention that it pays to words of its prompt, and masks that share a picture.

Cross-attention maps show where a word acts long before the picture is done (Prompt-to-Prompt, arXiv 2208.01626, section
3); Concept Conductor (arXiv 2408.03632) and MagicTailor (arXiv 2410.13370) take their regions from such maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def positions_of(word: Sequence[int], prompt: Sequence[int]) -> list[int]:
    """Where the tokens of a word stand in a prompt, every occurrence; empty if it does not occur."""
    length = len(word)
    starts = [i for i in range(len(prompt) - length + 1) if length and tuple(prompt[i:i + length]) == tuple(word)]
    return [i + offset for i in starts for offset in range(length)]


def word_attention(q: Tensor, k: Tensor, heads: int, words: Sequence[Sequence[int]]) -> Tensor:
    """How much each token of a picture attends to each word: (rows, words, tokens), mean over heads, 0 to 1.

    Args:
        q: (rows, tokens, channels) or (rows, heads, tokens, channels) of the picture.
        k: as q, of all that it attends to: a prompt, or in a joint attention prompt and picture.
        words: positions in k, a list for each word.
    """
    def split(t: Tensor) -> Tensor:
        return t if t.ndim == 4 else t.unflatten(-1, (heads, -1)).transpose(1, 2)
    total = 0.0
    for of, to in zip(split(q).unbind(1), split(k).unbind(1), strict=True):  # a joint attention of all is large
        weights = (of.float() @ to.float().transpose(-1, -2) * of.shape[-1] ** -0.5).softmax(dim=-1)
        total = total + torch.stack([weights[..., list(positions)].sum(dim=-1) for positions in words], dim=1)
    return total / heads


def regions(maps: Tensor, threshold: float = 0.4, feather: float = 0.0) -> Tensor:
    """Soft masks (B, words, h, w) from attention maps of that shape: each place goes to the word it attends to most.

    Each map is scaled to 0..1 over the picture. A place belongs to no word where the largest is below ``threshold``.
    The masks sum to at most 1.

    Args:
        maps: any positive scale.
        threshold: 0 (the whole picture is divided) to 1.
        feather: width of the soft edge in cells of the map.
    """
    low, high = maps.amin(dim=(-1, -2), keepdim=True), maps.amax(dim=(-1, -2), keepdim=True)
    scaled = (maps - low) / (high - low).clamp_min(1e-8)
    best = scaled.amax(dim=1, keepdim=True)
    owner = scaled.argmax(dim=1, keepdim=True) == torch.arange(maps.shape[1], device=maps.device).view(1, -1, 1, 1)
    return blended((owner & (best >= threshold)).float(), feather)


def blended(masks: Tensor, feather: float = 0.0) -> Tensor:
    """Masks (B, n, H, W) with soft edges of ``feather`` cells, that sum to at most 1 where they overlap."""
    masks = feathered(masks.clamp(0.0, 1.0), feather)
    return masks / masks.sum(dim=1, keepdim=True).clamp_min(1.0)


def feathered(masks: Tensor, width: float) -> Tensor:
    """Masks (B, n, H, W) blurred by a Gaussian whose standard deviation is half of ``width`` cells."""
    if width <= 0:
        return masks
    radius = max(1, round(width * 1.5))
    x = torch.arange(-radius, radius + 1, device=masks.device, dtype=masks.dtype)
    kernel = torch.exp(-0.5 * (x / (width / 2)) ** 2)
    kernel = (kernel / kernel.sum()).expand(masks.shape[1], 1, 1, -1)
    padded = F.pad(masks, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=masks.shape[1])
    return F.conv2d(rows, kernel.transpose(-1, -2), groups=masks.shape[1])
