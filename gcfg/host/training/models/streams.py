"""Latents of several streams, picture and sound: training on pictures leaves the sound out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_still(latent_format, size: Sequence[int]) -> list[Tensor]:
    """The streams (1, C, ...) of one empty picture, as the host's sampler makes them; most models have one.

    Args:
        latent_format: of the host.
        size: height and width in latent cells.
    """
    frames = (1,) * (latent_format.latent_dimensions - 2)
    empty = torch.zeros(1, latent_format.latent_channels, *frames, *size)
    if hasattr(latent_format, "fix_empty_latent"):
        empty = latent_format.fix_empty_latent(empty)
    return list(empty.unbind()) if getattr(empty, "is_nested", False) else [empty]


def picture_channels(latent_format) -> int:
    """Channels of a picture's latent."""
    return empty_still(latent_format, (2, 2))[0].shape[1]


def without_sound(picture: Tensor, latent_format) -> tuple[Tensor, list[tuple[int, ...]]]:
    """A picture's latent (B, C, 1, h, w) as the network reads it, packed, and the shapes of its streams.

    Streams beside the picture's are empty: of no length.
    """
    beside = [(len(picture), *stream.shape[1:-1], 0) for stream in empty_still(latent_format, picture.shape[-2:])[1:]]
    shapes = [tuple(picture.shape), *beside]
    return (picture.reshape(len(picture), 1, -1) if beside else picture), shapes
