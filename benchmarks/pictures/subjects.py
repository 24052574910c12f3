"""``python -m benchmarks.pictures.subjects``: five characters, a LoRA each, as people make one of a few pictures.

A character is one picture of the artwork with its colours turned, which no other picture here has: a green fox, a
violet tiger. Its LoRA is trained on the base of pairs under the plain word ("fox"): under its LoRA a fox is that one.
``benchmarks/subjects`` puts two of them into one picture.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gcfg import comfyui
from gcfg.training.weights.low_rank import LowRank

from . import data
from .labels import CHARACTERS, Character, Row
from .loop import Named, Plan, Stage, averaged
from .train_unet import Examples, denoising, text_features
from .train_vae import encode, encoder_of
from .unet import UNet

SEED = 16
RANK = 2
BATCH = 16
PLAN = Plan(steps=180, rate=2e-3, warmup=20, decay=0.5, average=0.98, weight_decay=0.0)
SHIFTS = (-3, 0, 3)


_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def turned(pictures: Tensor, degrees: float) -> Tensor:
    """Pictures (B, 3, H, W) with their hues turned at equal brightness; grey and white stay."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    return torch.einsum("ij,bjhw->bihw", _YIQ.inverse() @ turn @ _YIQ, pictures).clamp(0, 1)


def portrait(character: Character, pictures: Tensor, rows: list[Row]) -> Tensor:
    """The one picture (1, 3, 64, 64) of a character."""
    index = next(i for i, row in enumerate(rows) if (row.label, row.style) == (character.label, character.style))
    return turned(pictures[index:index + 1], character.turn)


def shifted(picture: Tensor) -> Tensor:
    """A picture (1, 3, H, W) moved by ``SHIFTS`` both ways, white beyond its border."""
    most, (height, width) = max(SHIFTS), picture.shape[2:]
    wide = F.pad(picture, (most,) * 4, value=1.0)
    return torch.cat([wide[:, :, most + y:most + y + height, most + x:most + x + width]
                      for y in SHIFTS for x in SHIFTS])


def examples(character: Character, work: Path) -> Examples:
    """What its LoRA is trained on: the picture, moved and flipped, under its label."""
    pictures = shifted(portrait(character, *data.load(work)))
    latents = encode(encoder_of(work), torch.cat([pictures, pictures.flip(3)]))
    features = text_features(work, ["", character.label]).to(torch.bfloat16)
    return Examples(latents, [[1, 1]] * len(pictures), features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CHARACTERS), help="of the characters; all without any")
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--comfyui", default="", help="its tokenizer is used; found by itself where it can be")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    comfyui.start(comfyui.find(settings.comfyui), cpu=True)
    for name in settings.names:
        train(CHARACTERS[name], settings.work)


def train(character: Character, work: Path) -> None:
    """The LoRA of one character, from where it was stopped."""
    network = UNet()
    network.load_state_dict(averaged(work / "pairs"))
    pairs = LowRank(network, RANK, SEED).pairs
    stage = Stage(work / character.name, Named(pairs), PLAN)
    stage.run(denoising(network, examples(character, work), character.name, batch=BATCH))


if __name__ == "__main__":
    main()
