"""A narrow TAESD: pictures (B, 3, 64, 64) in 0 .. 1 <-> latents (B, 4, 8, 8) of unit size.

Channels beyond these are zero in the file that a stock ComfyUI loads (``expand.vae``), which changes nothing: a zero
channel stays zero through convolution, skip and ReLU. ``PLACES`` names the layers' places in TAESD.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FULL, HALF, QUARTER, EIGHTH = 24, 48, 64, 64
"""Channels at each resolution; TAESD has 64 everywhere."""

LATENT = 4


def conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


class Block(nn.Module):
    """TAESD's residual block."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Encoder(nn.Module):
    """TAESD's first convolution and full-resolution block pass RGB and a constant 1 through: four channels come in."""

    PLACES = {0: 2, 2: 6, 3: 7, 4: 10, 5: 11, 6: 12, 7: 13, 8: 14}

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            conv(4, 32, 2, bias=False), nn.ReLU(), conv(32, QUARTER, 2, bias=False), Block(QUARTER),
            conv(QUARTER, EIGHTH, 2, bias=False), Block(EIGHTH), Block(EIGHTH), Block(EIGHTH), conv(EIGHTH, LATENT))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(torch.cat([pictures, torch.ones_like(pictures[:, :1])], 1))


class Decoder(nn.Module):
    PLACES = {0: 1, 2: 3, 3: 4, 4: 5, 6: 7, 7: 8, 8: 9, 9: 10, 11: 12, 12: 13, 13: 14, 15: 17, 17: 19}

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            conv(LATENT, EIGHTH), nn.ReLU(), Block(EIGHTH), Block(EIGHTH), Block(EIGHTH), nn.Upsample(scale_factor=2),
            conv(EIGHTH, QUARTER, bias=False), Block(QUARTER), Block(QUARTER), Block(QUARTER),
            nn.Upsample(scale_factor=2),
            conv(QUARTER, HALF, bias=False), Block(HALF), Block(HALF), nn.Upsample(scale_factor=2),
            conv(HALF, FULL, bias=False), nn.ReLU(), conv(FULL, 3))

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(torch.tanh(latents / 3) * 3)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for block in self.modules():
            if isinstance(block, Block):
                block.conv[4].weight.data *= 0.1
        last = self.decoder.layers[-1]
        last.weight.data *= 0.2
        nn.init.constant_(last.bias, 0.8)
