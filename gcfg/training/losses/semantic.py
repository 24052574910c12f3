"""Semantic preservation: a new word keeps its class's meaning (ClassDiffusion, arXiv 2405.17532)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

PAPER_WEIGHT = 0.25
"""The paper's weight 1 beside a squared error that is a mean: the official reconstruction loss is four times ours."""


def semantic_preservation(new: Tensor, class_: Tensor) -> Tensor:
    """The semantic distance of K subjects from their classes, ``1/K sum_k 1 - cos(E(new_k), E(class_k))``, in [0, 2].

    arXiv 2405.17532, equation 7. E is the text encoder's output at the end of the text, before its projection.

    Args:
        new: E("a photo of a NEW CLASS"), (K, C).
        class_: E("a photo of a CLASS"), (K, C).
    """
    return (1.0 - F.cosine_similarity(new.float(), class_.float(), dim=-1)).mean()


def masked_squared_error(output: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """The diffusion loss inside a mask: ``sum m (output - target)^2 / (C sum m)``, mean per sample.

    The official code leaves C out, so that its value is C times this one.

    Args:
        output, wanted: (B, C, ..., h, w).
        mask: (B, 1, ..., h, w) in [0, 1]; a sample whose mask is empty gives 0.
    """
    squares = (output.float() - wanted.float()).square().mean(1, keepdim=True)
    return (squares * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)
