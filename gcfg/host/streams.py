"""Latents of several streams, picture and sound: what a still picture of such models is."""

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


def still_with_sound(patcher, size: Sequence[int], length: int = 4) -> list[Tensor]:
    """The streams of one empty picture with a sound of some frames, where the MODEL makes sound at all."""
    streams, network = empty_still(patcher.get_model_object("latent_format"), size), patcher.model.diffusion_model
    if len(streams) == 1 and hasattr(network, "num_audio_channels"):  # LTX-2, which can also do without
        streams.append(torch.zeros(1, network.num_audio_channels, length, network.audio_frequency_bins))
    return streams


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
