"""The weights of a file that holds a whole network, null-text or not, checked against a base model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..tokens import null_token_shapes, tokens_of
from .checkpoint import CheckpointError
from .identify import Kind, check_keys, check_values, identify, unet_weights

LONGEST = 65536
"""Tokens that a null prompt may have."""


def network_weights(tensors: Mapping[str, Tensor], base: Mapping[str, tuple[int, ...]], name: str
                    ) -> tuple[dict[str, Tensor], Kind]:
    """Weights under ComfyUI's names, and what the file is; see ``unet_weights`` for UNets.

    Args:
        tensors: what ``checkpoint.read`` gave.
        base: names and shapes of the base model's network, ComfyUI's names.
        name: the file's name, for messages.

    Raises:
        CheckpointError: the file does not hold exactly these weights.
    """
    if identify(tensors) is not Kind.NULL_TOKENS:
        return unet_weights(tensors, base, name)
    check_keys(tensors, null_token_shapes(base, tensors), name, Kind.NULL_TOKENS)
    check_values(tensors, name)
    for projection, tokens in tokens_of(tensors).items():
        counts = tokens.counts
        if not len(counts) or (counts < 1).any() or (counts != counts.round()).any() or counts.sum() > LONGEST:
            raise CheckpointError(f"{name}: the tokens of '{projection}' are not counted in whole numbers of up to "
                                  f"{LONGEST}; the file is damaged, save it again.")
    return dict(tensors), Kind.NULL_TOKENS
