"""A narrow SD1.5 UNet of one resolution: latents (B, 4, H, W), times (B,), features (B, 77, 64) -> noise (B, 4, H, W).

160 channels. ``expand.unet`` writes every channel twice, which is the same function at the 320 channels that the stock
loader asks for. Parameters are named as in ComfyUI and in the original checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .words import WIDTH as CONTEXT

CHANNELS, HEADS, LATENT = 160, 8, 4


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.0),
                                        nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip_connection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width: int, context: int):
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)
                   for tokens in (self.to_q(x), self.to_k(context), self.to_v(context)))
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)  # faster than the fused kernel here
        return self.to_out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """GEGLU."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(Gated(width), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width: int, context: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2, self.ff = Attention(width, width), Attention(width, context), FeedForward(width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), features)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width: int, context: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, context)])

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        tokens = self.transformer_blocks[0](h.flatten(2).transpose(1, 2), features)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """Stock SD1.5 with ``channel_mult`` and ``num_res_blocks`` [1].

    Args:
        width: channels.
        context: width of the text features.
    """

    def __init__(self, width: int = CHANNELS, context: int = CONTEXT):
        super().__init__()
        self.width, time = width, 4 * width

        def pair(inputs: int) -> nn.ModuleList:
            return nn.ModuleList([Residual(inputs, width, time), Transformer(width, context)])

        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(LATENT, width, 3, padding=1)]), pair(width)])
        self.middle_block = nn.ModuleList([*pair(width), Residual(width, width, time)])
        self.output_blocks = nn.ModuleList([pair(2 * width), pair(2 * width)])
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, LATENT, 3, padding=1))
        self.apply(_start)
        for name, weight in self.named_parameters():
            if name.endswith(("out_layers.3.weight", "proj_out.weight")) or name == "out.2.weight":
                nn.init.zeros_(weight)

    def forward(self, latents: Tensor, times: Tensor, features: Tensor, control: Sequence[Tensor] = ()) -> Tensor:
        time = self.time_embed(waves(times, self.width))
        *skips, h = down(self, latents, time, features)
        if control:
            *skips, h = (own + added for own, added in zip((*skips, h), control, strict=True))
        for block in self.output_blocks:
            h = _pair(block, torch.cat([h, skips.pop()], 1), time, features)
        return self.out(h)


def down(network: nn.Module, latents: Tensor, time: Tensor, features: Tensor, added: Tensor | float = 0.0
         ) -> list[Tensor]:
    """The way down of a UNet or of its ControlNet, and its middle; ``added`` to what the first convolution gives."""
    first, second = network.input_blocks
    found = [first[0](latents) + added]
    found.append(_pair(second, found[-1], time, features))
    found.append(network.middle_block[2](_pair(network.middle_block, found[-1], time, features), time))
    return found


def _pair(block: nn.ModuleList, h: Tensor, time: Tensor, features: Tensor) -> Tensor:
    return block[1](block[0](h, time), features)


def _start(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.normal_(layer.weight, std=0.8 * layer.weight[0].numel() ** -0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def waves(times: Tensor, width: int) -> Tensor:
    """cos and sin of the times at width / 2 frequencies from 1 down to nearly 1 / 10000, (B, width)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = times[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def alphas_cumprod() -> Tensor:
    """SD1.5's schedule, (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, 0).float()
