"""What tests of training share: drawn pictures, and stand-ins for a text encoder and an autoencoder."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .models.tiny import conditioning


def draw_pictures(folder: Path, count: int = 30, size: int = 64, seed: int = 0) -> Path:
    """Pictures of one concept: a bright disc on a dark ground, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    for k in range(count):
        inside = (x - random.uniform(0.4, 0.6)) ** 2 + (y - random.uniform(0.4, 0.6)) ** 2 < 0.06
        pixels = np.stack([np.where(inside, 0.95, 0.1), np.where(inside, 0.8, 0.15), 0.1 + 0.1 * x], axis=-1)
        Image.fromarray((pixels * 255).astype(np.uint8)).save(folder / f"picture_{k:02}.png")
    return folder


class Clip:
    """A text encoder whose conditioning is random but fixed per prompt."""

    def __init__(self, width: int = 768, pooled: int = 0):
        self.width, self.pooled = width, pooled

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        return conditioning(seed=sum(tokens.encode()), width=self.width, pooled=self.pooled)


class Vae:
    """An autoencoder that averages eight pixels into one cell; its latents have about the host's scale."""

    def get_sd(self) -> dict[str, torch.Tensor]:
        return {"kind": torch.zeros(1)}

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([x, x.mean(1, keepdim=True)], dim=1) * 10.0 - 5.0

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return F.interpolate((latents[:, :3].float() + 5.0) / 10.0, scale_factor=8).movedim(1, -1)
