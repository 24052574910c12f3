"""Subjects on the small base that composes, in pure torch: what Train Subject does in ComfyUI, four times faster.

The base at its narrow size computes what its checkpoint does (``tests/pictures``). New words are rows among the tokens,
a subject's weights low-rank pairs on every layer; the losses are those of ``gcfg.training``.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gcfg.guidance import Recipe
from gcfg.training.losses.semantic import semantic_preservation
from gcfg.training.randomness import seed_of
from gcfg.training.weights.low_rank import LowRank

from ..pictures import shipped
from ..pictures.sampling import Denoiser, noise_of, sample
from ..pictures.train_unet import denoising
from ..pictures.unet import UNet
from ..pictures.vae import Autoencoder
from ..pictures.words import END, START, TextEncoder
from .characters import SIZE

PROMPT, NEW = "a photo of a", re.compile(r"<(\d)>")
RANK, BATCH, RATE = 16, 4, 1e-3
SAMPLED = 10
"""Steps of sampling."""


class Family:
    """The base: text encoder, UNet and autoencoder, as ``train_composed`` writes them."""

    def __init__(self, folder: Path):
        tensors, self.tokenize = shipped.read("base", folder), shipped.words(folder)
        words = shipped.part(tensors, "text.")
        self.text, self.unet, self.vae = TextEncoder(words["tokens"]), UNet(), Autoencoder()
        self.text.load_state_dict(words)
        self.unet.load_state_dict(shipped.part(tensors, "unet."))
        self.vae.load_state_dict(shipped.part(tensors, "vae."))
        for part in (self.text, self.unet, self.vae):
            part.requires_grad_(False)

    def row(self, word: str) -> Tensor:
        """The row (1, 64) of a word of one token."""
        return self.text.token_embedding[self._rows(word)]

    def read(self, texts: Sequence[str], rows: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Features (B, 77, 64) of texts, and E (B, 64), those at their ends.

        Args:
            rows: (n, 64) of each new word, ``<0>``, ``<1>`` in a text.
        """
        embedded, ends = zip(*(self._embedded(text, rows) for text in texts), strict=True)
        features = self.text.read(torch.stack(embedded))
        return features, features[torch.arange(len(texts)), list(ends)]

    def _embedded(self, text: str, rows: Sequence[Tensor]) -> tuple[Tensor, int]:
        table, (start, end) = self.text.token_embedding, self.text.rows_of(torch.tensor([START, END]))
        parts = [rows[int(piece)] if k % 2 else table[self._rows(piece)] for k, piece in enumerate(NEW.split(text))]
        inside = torch.cat([table[start][None], *parts])
        return torch.cat([inside, table[end].expand(77 - len(inside), -1)]), len(inside)

    def _rows(self, text: str) -> Tensor:
        ids = self.tokenize(text)
        return self.text.rows_of(torch.tensor(ids[1:ids.index(END)], dtype=torch.int64))

    def pictures(self, models: Mapping[str, nn.Module], recipe: Recipe, texts: Mapping[str, Tensor], seeds: range,
                 wide: bool = False) -> Tensor:
        """Pictures (prompts x seeds, 3, 64, 64 or 128), all seeds of a prompt together.

        Args:
            models: UNets by the recipe's names.
            texts: features by its conditionings, (prompts, 77, 64) or (1, 77, 64).
        """
        count = max(len(features) for features in texts.values())
        texts = {name: features.expand(count, -1, -1).repeat_interleave(len(seeds), 0)
                 for name, features in texts.items()}
        noise = torch.cat([noise_of(seed, (4, 8, 16 if wide else 8)) for seed in seeds]).repeat(count, 1, 1, 1)
        networks = {name: Denoiser(network) for name, network in models.items()}
        with torch.no_grad():
            return self.vae.decoder(sample(networks, recipe, texts, noise, SAMPLED)).clamp(0, 1)


@dataclass(frozen=True)
class Lesson:
    """A subject's pictures and what is said of them.

    Attributes:
        latents: (N, 4, 8, 8).
        caption, plain: with the new word, and with the class alone.
    """

    latents: Tensor
    caption: str
    plain: str

    @classmethod
    def of(cls, family: Family, folder: Path, word: int = 0, class_word: str = "face") -> Lesson:
        """Of a folder of pictures, and these flipped."""
        shown = loaded(folder)
        with torch.no_grad():
            latents = family.vae.encoder(torch.cat([shown, shown.flip(3)]))
        return cls(latents, f"{PROMPT} <{word}> {class_word}", f"{PROMPT} {class_word}")


def loaded(folder: Path) -> Tensor:
    """The pictures of a folder, (N, 3, 64, 64) in 0 .. 1."""
    shown = [np.array(Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))
             for file in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(shown)).movedim(3, 1).float() / 255


@dataclass(frozen=True)
class Taught:
    """What a run has learned: rows (n, 64) of the new words, the UNet, the semantic distance of the words."""

    rows: list[Tensor]
    unet: nn.Module
    distance: float


def teach(family: Family, lessons: Sequence[Lesson], rows: Sequence[Tensor], weight: float, seed: int, steps: int
          ) -> Taught:
    """Train the rows and low-rank pairs on all lessons; equation 8 of arXiv 2405.17532.

    Args:
        rows: of each lesson's word, to begin with.
        weight: of the semantic distance; 0.25 is the paper's.
    """
    network, rows = copy.deepcopy(family.unet), [row.clone().requires_grad_() for row in rows]
    pairs = LowRank(network, RANK, seed).pairs
    optimizer = torch.optim.AdamW([*rows, *pairs.values()], RATE, weight_decay=0.0)
    loss_of = denoising(network, Batches(family, lessons, rows), f"subject {seed}", batch=BATCH)
    with torch.no_grad():
        plain = family.read([lesson.plain for lesson in lessons])[1]
    for step in range(steps):
        distance = semantic_preservation(family.read([lesson.caption for lesson in lessons], rows)[1], plain)
        loss = loss_of(step) + weight * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Taught([row.detach() for row in rows], network.requires_grad_(False), float(distance.detach()))


@dataclass(frozen=True)
class Batches:
    """The lessons' pictures in batches, drawn from (stage, step); the features carry the rows' gradient."""

    family: Family
    lessons: Sequence[Lesson]
    rows: Sequence[Tensor]

    def draw(self, count: int, stage: str, step: int) -> tuple[Tensor, Tensor]:
        dice = random.Random(seed_of(stage, step))
        drawn = [dice.choice(self.lessons) for _ in range(count)]
        latents = torch.stack([lesson.latents[dice.randrange(len(lesson.latents))] for lesson in drawn])
        return latents, self.family.read([lesson.caption for lesson in drawn], self.rows)[0]
