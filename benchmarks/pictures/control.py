"""A narrow ControlNet (arXiv 2302.05543) for the narrow UNet: what pictures of edges add on its way down.

Parameters are named as in the original checkpoints.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .unet import UNet, down, waves

HINT = (3, 16, 16, 32, 32, 96, 96, 256)
"""Channels of the convolutions that read a hint; the last one leads to the UNet's width."""
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)


class ControlNet(nn.Module):
    """Latents (B, 4, h, w), times (B,), features, hints (B, 3, 8 h, 8 w) in [0, 1] -> what is added at three places."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.width = width = unet.width
        for part in ("time_embed", "input_blocks", "middle_block"):
            setattr(self, part, copy.deepcopy(getattr(unet, part)))
        layers = []
        for inputs, outputs, stride in zip(HINT, (*HINT[1:], width), STRIDES, strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers[:-1])
        self.zero_convs = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1)) for _ in self.input_blocks)
        self.middle_block_out = nn.Sequential(nn.Conv2d(width, width, 1))
        for layer in (self.input_hint_block[-1], *self.zero_convs, self.middle_block_out):
            for value in layer.parameters():
                nn.init.zeros_(value)

    def forward(self, latents: Tensor, times: Tensor, features: Tensor, hints: Tensor) -> list[Tensor]:
        time = self.time_embed(waves(times, self.width))
        found = down(self, latents, time, features, self.input_hint_block(hints))
        return [out(h) for out, h in zip((*self.zero_convs, self.middle_block_out), found, strict=True)]


class Controlled(nn.Module):
    """A UNet that stays as it is, with a ControlNet to train."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.control = ControlNet(unet)
        self.unet = unet.requires_grad_(False)

    def forward(self, latents: Tensor, times: Tensor, features: Tensor, hints: Tensor) -> Tensor:
        return self.unet(latents, times, features, self.control(latents, times, features, hints))


def edges(pictures: Tensor, low: float = 0.2, high: float = 0.5) -> Tensor:
    """Canny edges of pictures (B, 3, H, W), white on black, as ComfyUI's node Canny draws them, by kornia as there."""
    from kornia.filters import canny

    return torch.cat([canny(part, low, high)[1] for part in pictures.split(64)]).expand(-1, 3, -1, -1)
