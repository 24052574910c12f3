"""``python -m benchmarks.pictures.train_composed``: a base that composes, with the text encoder that it reads by.

In the end it lies in ``composed/models`` of the work folder: narrow, as the shipped family does, and as a checkpoint.
Goes on from the base of pairs with composed pictures (``composed.py``) beside the artwork, singly and two side by side.
The text encoder learns along: by contrast it has read labels of the artwork only, never a colour, nor two captions.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gcfg.nulltext.formats import checkpoint
from gcfg.training.randomness import seed_of

from . import captions, composed, data, expand, labels, pack, shipped
from .command import begun
from .loop import Plan, Stage, averaged
from .pairs import JOINS, beside
from .train_unet import denoising, text_encoder
from .train_vae import encode, encoder_of
from .unet import UNet
from .words import Table, TextEncoder, known, tokenizer

SEED = 18
PLAN = Plan(steps=1000, rate=8e-4, warmup=150, decay=0.5, average=0.997)
WIDE_EVERY, ARTWORK = 3, 0.3
"""Every third step shows two heads side by side; the share of the artwork as it is."""


class Family(nn.Module):
    """What is trained: the text encoder and the UNet."""

    def __init__(self, tokens: Tensor):
        super().__init__()
        self.text, self.unet = TextEncoder(tokens), UNet()


@dataclass(frozen=True)
class Mixed:
    """Artwork and composed pictures, singly and in pairs, drawn from (seed, step).

    Attributes:
        latents: ``single`` (N, 4, 8, 8), and as the ``left`` and the ``right`` part of a wide picture.
        captions: for each picture a draw of what is said of it; the artwork's first.
        artwork: how many these are.
        text, tokenize: a caption's features are their doing.
    """

    latents: dict[str, Tensor]
    captions: list
    artwork: int
    text: TextEncoder
    tokenize: Table

    def draw(self, count: int, stage: str, step: int) -> tuple[Tensor, Tensor]:
        """Latents and features of a batch; of half as many wide pictures in every third step."""
        dice = random.Random(seed_of(SEED, stage, step))
        if step % WIDE_EVERY:
            index = [self._one(dice) for _ in range(count)]
            latents, said = self.latents["single"][index], [self.captions[i](dice) for i in index]
        else:
            sides = [[self._one(dice) for _ in range(count // 2)] for _ in range(2)]
            latents = torch.cat([self.latents["left"][sides[0]], self.latents["right"][sides[1]]], 3)
            said = [f" {dice.choice(JOINS)} ".join(self.captions[i](dice) for i in pair)
                    for pair in zip(*sides, strict=True)]
        return latents, self.read([text if dice.random() < 0.9 else "" for text in said])

    def read(self, texts: list[str]) -> Tensor:
        return self.text(self.text.rows_of(torch.tensor([self.tokenize(text) for text in texts])))

    def _one(self, dice: random.Random, artwork: float = ARTWORK) -> int:
        return dice.randrange(self.artwork) if dice.random() < artwork else dice.randrange(self.artwork,
                                                                                           len(self.captions))


def main() -> None:
    settings = begun(__doc__)
    family, shown = prepared(settings.work)
    stage = Stage(settings.work / "composed", family, PLAN)
    stage.run(denoising(family.unet, shown, "composed"), settings.minutes)
    print(write(settings.work, "composed", family.text.tokens, shown.tokenize))


def prepared(work: Path) -> tuple[Family, Mixed]:
    """The family as it is before the first step, and what it is shown."""
    artwork, rows = data.load(work)
    keep = labels.base(rows)
    artwork, rows = artwork[keep], [rows[i] for i in keep]
    pictures, shown = composed.load(work)
    tokenize = Table.of([*captions.every(rows), *JOINS, *(each.words for each in shown)], tokenizer())
    family = start(known(tokenize(piece) for piece in tokenize.pieces), work)
    said = [Said(captions.with_style(row), row.label) for row in rows]
    latents = encoded(torch.cat([artwork, artwork.flip(3), pictures]), work)
    said = [*said, *said, *(each.caption for each in shown)]
    return family, Mixed(latents, said, 2 * len(rows), family.text, tokenize)


@dataclass(frozen=True)
class Said:
    """A caption of the artwork, with its style or without."""

    styled: str
    label: str

    def __call__(self, dice: random.Random) -> str:
        return dice.choice(composed.PREFIXES) + (self.styled if dice.random() < 0.5 else self.label)


def start(tokens: Tensor, work: Path) -> Family:
    """The UNet of the pairs, the text encoder with the rows that it has and new ones for the other tokens."""
    torch.manual_seed(SEED)
    family, old = Family(tokens), text_encoder(work)
    family.unet.load_state_dict(averaged(work / "pairs"))
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), old.rows_of(tokens)])
    met = (rows > 0) | (torch.arange(len(rows)) == 0)
    weights = {name: value for name, value in old.state_dict().items() if name not in ("tokens", "token_embedding")}
    family.text.load_state_dict(weights, strict=False)
    with torch.no_grad():
        family.text.token_embedding[met] = old.token_embedding[rows[met]]
    return family


def encoded(pictures: Tensor, work: Path) -> dict[str, Tensor]:
    """Latents of pictures (N, 3, 64, 64), alone and beside white, kept in a file."""
    path = work / "composed" / "latents.safetensors"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        encoder = encoder_of(work)
        left, right = beside(encoder, pictures)
        save_file({"single": encode(encoder, pictures), "left": left, "right": right}, path)
    return load_file(path)


def write(work: Path, stage: str, tokens: Tensor, table: Table) -> Path:
    """Write a stage's averaged weights as the shipped family lies in ``models/``, and its checkpoint; its path."""
    folder, vae = work / stage / "models", shipped.part(pack.base(work, "pairs"), "vae.")
    tensors = averaged(work / stage) | {f"vae.{name}": value for name, value in vae.items()}
    checkpoint.write(folder / "base.safetensors", shipped.half(tensors | {"text.tokens": tokens}),
                     {"credit": expand.CREDIT, "kind": "narrow base, see shipped.py"})
    (folder / "words.json").write_text(json.dumps(table.pieces), "utf-8")
    return expand.expand(folder, folder)["base"]


def checkpoint_path(work: Path) -> Path:
    """Where ``write`` writes the checkpoint."""
    return work / "composed" / "models" / expand.FILES["base"]


if __name__ == "__main__":
    main()
