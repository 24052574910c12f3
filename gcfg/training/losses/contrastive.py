"""Contrastive tuning of words: a caption is nearer to its own picture than to all others (CLIF, arXiv 2405.06914)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = 100.0
"""Of CLIP's similarities, exp(logit_scale)."""


def info_nce(image: Tensor, text: Tensor, scale: float = SCALE, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE, ``(CE(S, diagonal) + CE(S^T, diagonal)) / 2`` with ``S = scale n(image) n(text)^T``.

    arXiv 2405.06914, equation 4; arXiv 2103.00020 for the normalisation n, which the official code leaves out.

    Args:
        image, text: features of B pictures and of their captions, (B, C).
        same: (B, B), True where two rows have the same caption: they are no negatives of each other.
    """
    return info_nce_each(image, text, scale, same).mean()


def info_nce_each(image: Tensor, text: Tensor, scale: float = SCALE, same: Tensor | None = None) -> Tensor:
    """The share of every row in ``info_nce``, (B,)."""
    similarity = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    if same is not None:
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        similarity = similarity.masked_fill(others, -torch.inf)
    own = torch.arange(len(similarity), device=similarity.device)
    rows, columns = (F.cross_entropy(s, own, reduction="none") for s in (similarity, similarity.T))
    return (rows + columns) / 2


def equal(labels: Sequence[Hashable]) -> Tensor:
    """(B, B), True where two labels are equal."""
    numbers = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    at = torch.tensor([numbers[label] for label in labels])
    return at[:, None] == at[None, :]
