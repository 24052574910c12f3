"""A world of attributes with known directions, and a small contextual text encoder that has learned it.

The embedding of a picture is the mean of its attributes' fixed directions, so what a text embedding contains can be
read off. The text encoder is causal and pools at the end of the text, as CLIP's does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcfg.training.losses.contrastive import info_nce

WIDTH, LENGTH = 64, 14
CONTENT = [*(f"attribute{k}" for k in range(24)), *(f"class{k}" for k in range(4)), "hat", "glasses", "snow", "beach"]
WORDS = ["<start>", "<end>", "a", "photo", "of", "and", "wearing", "cartoon", *CONTENT]
IDS = {word: number for number, word in enumerate(WORDS)}
END, NEW = IDS["<end>"], len(WORDS)
"""The end of every text; the id of the first new word."""
PHOTO = ["a", "photo", "of", "a"]
SCALE = 20.0
"""Of similarities; CLIP's is 100 at a thousand times the data."""


class World:
    """Directions of all attributes, and pictures made of them.

    Args:
        seed: of the directions and of the pictures' noise.
    """

    def __init__(self, seed: int):
        self.source = torch.Generator().manual_seed(seed)
        self.directions = {word: F.normalize(torch.randn(WIDTH, generator=self.source), dim=0) for word in CONTENT}

    def picture(self, attributes: list[str], noise: float = 0.15) -> Tensor:
        """The embedding (C,) of a picture that shows these attributes."""
        mean = torch.stack([self.directions[a] for a in attributes]).mean(0)
        return F.normalize(mean + noise * torch.randn(WIDTH, generator=self.source) / WIDTH**0.5, dim=0)

    def pick(self, count: int) -> int:
        """A random number below ``count``."""
        return int(torch.randint(count, (1,), generator=self.source))


class TextEncoder(nn.Module):
    """Two causal transformer layers; E(text) is what stands at its end."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(NEW, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True,
                                                               norm_first=True) for _ in range(2))
        self.norm, self.projection = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def pooled(self, texts: list[list], rows: Tensor | None = None) -> Tensor:
        """E(text) before the projection, (B, C).

        Args:
            texts: words; a number k stands for the new word ``rows[k]``.
            rows: of the new words, (K, C).
        """
        ids = torch.tensor([[IDS["<start>"], *(NEW + w if isinstance(w, int) else IDS[w] for w in text), END,
                             *[END] * (LENGTH - 2 - len(text))] for text in texts])
        table = self.words.weight if rows is None else torch.cat([self.words.weight, rows])
        x = F.embedding(ids, table) + self.positions
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        return self.norm(x)[torch.arange(len(ids)), (ids == END).int().argmax(1)]

    def forward(self, texts: list[list], rows: Tensor | None = None) -> Tensor:
        """The text's embedding in the pictures' space, (B, C), length 1."""
        return F.normalize(self.projection(self.pooled(texts, rows)), dim=-1)


def pretrained(seed: int, steps: int = 1500, batch: int = 64) -> tuple[World, TextEncoder]:
    """A world and the text encoder that has learned it from captioned pictures of one to three attributes."""
    torch.manual_seed(seed)
    encoder, world = TextEncoder(), World(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), 1e-3)
    for _ in range(steps):
        shown = [[CONTENT[world.pick(len(CONTENT))] for _ in range(1 + world.pick(3))] for _ in range(batch)]
        texts = [PHOTO + [w for k, a in enumerate(attributes)
                          for w in ([("and", "wearing")[world.pick(2)]] if k else []) + [a]] for attributes in shown]
        loss = info_nce(torch.stack([world.picture(attributes) for attributes in shown]), encoder(texts), SCALE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return world, encoder.train(False).requires_grad_(False)
