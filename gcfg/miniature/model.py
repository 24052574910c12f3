"""A small text-conditioned diffusion model with the transformer blocks of Stable Diffusion's UNet.

Captions have three words (shape, colour, place); each may be left out, and the null text leaves out all three.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pictures import COLOURS, PLACES, SHAPES

WORDS = ("", *SHAPES, *COLOURS, *PLACES)
CONTEXT = 48


class Attention(nn.Module):
    """Attention of (B, T, C) on itself or on a context (B, S, D)."""

    def __init__(self, width: int, context: int | None = None, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, width, bias=False)
        self.to_v = nn.Linear(context or width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each behind a norm and a residual, on (B, C, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1, self.attn2 = Attention(width), Attention(width, CONTEXT)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, picture: Tensor, context: Tensor) -> Tensor:
        x = picture.flatten(2).transpose(1, 2)
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        x = x + self.ff(self.norm3(x))
        return x.transpose(1, 2).unflatten(2, picture.shape[2:])


class ResBlock(nn.Module):
    """Two convolutions with a residual; the noise level scales and shifts in between."""

    def __init__(self, width_in: int, width: int, embedding: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width_in), nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * width)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1.0 + scale) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """v-prediction on 16 x 16 pictures, folded to 8 x 8; text enters through ``attn2`` only."""

    def __init__(self, wide: int = 32, deep: int = 80, embedding: int = 96):
        super().__init__()
        self.noise = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.into = nn.Conv2d(12, wide, 3, padding=1)
        self.encode = ResBlock(wide, wide, embedding)
        self.down = nn.Conv2d(wide, deep, 2, stride=2)
        self.middle = nn.ModuleList([ResBlock(deep, deep, embedding), ResBlock(deep, deep, embedding)])
        self.text = nn.ModuleList([TransformerBlock(deep), TransformerBlock(deep)])
        self.up = nn.Conv2d(deep, 4 * wide, 1)
        self.decode = ResBlock(2 * wide, wide, embedding)
        self.out = nn.Sequential(nn.GroupNorm(8, wide), nn.SiLU(), nn.Conv2d(wide, 12, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """x (B, 3, 16, 16) of unit scale, sigma (B,), context (B, 3, D) -> v (B, 3, 16, 16)."""
        e = self.noise(noise_features(sigma))
        skip = self.encode(self.into(F.pixel_unshuffle(x, 2)), e)
        h = self.down(skip)
        for block, text in zip(self.middle, self.text, strict=True):
            h = text(block(h, e), context)
        h = torch.cat([F.pixel_shuffle(self.up(h), 2), skip], dim=1)
        return F.pixel_shuffle(self.out(self.decode(h, e)), 2)


class Text(nn.Module):
    """Captions as word numbers (B, 3) -> context (B, 3, D). Trained with the base and frozen ever after."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(len(WORDS), CONTEXT)
        self.slots = nn.Parameter(torch.randn(3, CONTEXT))

    def forward(self, caption: Tensor) -> Tensor:
        return self.words(caption) + self.slots


class Denoiser(nn.Module):
    """Text encoder and UNet as a denoiser D(x; sigma, caption) of noisy pictures x = x0 + sigma n."""

    def __init__(self):
        super().__init__()
        self.text, self.unet = Text(), UNet()

    def forward(self, x: Tensor, sigma: Tensor, caption: Tensor) -> Tensor:
        """x (B, 3, 16, 16), sigma (B,), caption (B, 3) -> denoised (B, 3, 16, 16).

        D = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) v, from v-prediction (arXiv 2202.00512, section 4).
        """
        s = sigma.view(-1, 1, 1, 1)
        scale = (1.0 + s.square()).rsqrt()
        return x * scale.square() - s * scale * self.unet(x * scale, sigma, self.text(caption))


def noise_features(sigma: Tensor) -> Tensor:
    """Fourier features (B, 32) of the noise level, spread over the angle atan(sigma) of the noising."""
    angle = torch.atan(sigma)[:, None] * torch.arange(1, 17, device=sigma.device)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def caption_of(attributes: Tensor) -> Tensor:
    """The full caption (N, 3) of attributes (N, 3)."""
    return attributes + torch.tensor([1, 1 + len(SHAPES), 1 + len(SHAPES) + len(COLOURS)])
