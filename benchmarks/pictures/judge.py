"""``python -m benchmarks.pictures.judge``: a small classifier of pictures, the measures' eye.

It says which attributes a face has and in which style it is drawn. It has seen all heads in all four styles, the glossy
ones with sunglasses and tears included, which no generative model here has; as drawn and as the autoencoder draws them.
Its features are those of the Frechet distance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcfg.training.randomness import generator

from . import data, shipped
from .labels import STYLES, Row
from .loop import Plan, Stage, frozen
from .train_vae import encode, encoder_of
from .vae import Decoder

SEED = 14
PLAN = Plan(steps=700, rate=2e-3, decay=0.5, weight_decay=0.05)
BATCH = 64
FEATURES = 24
ATTRIBUTES = {
    "sunglasses": ("sunglasses",), "glasses": ("nerd", "disguised"),
    "crying": ("cry", "tears of joy", "smiling face with tear"), "hearts": ("with heart", "blowing a kiss"),
    "halo": ("halo",), "hat": ("cowboy", "partying"), "horns": ("horns",), "mask": ("medical mask",),
    "stars": ("star-struck",),
}
"""Attribute -> words of the labels that have it."""

STYLE_NAMES = tuple(STYLES.values())


def attributes_of(row: Row) -> list[float]:
    return [float(any(word in row.label for word in words)) for words in ATTRIBUTES.values()]


def halved(inputs: int, outputs: int) -> nn.Sequential:
    """Layers that halve both sides of a picture (B, inputs, h, w)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 4, 2, 1), nn.GroupNorm(4, outputs), nn.SiLU())


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) in 0 .. 1 -> features (B, 24), logits of attributes (B, 9) and styles (B, 4)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(halved(3, 16), halved(16, 32), halved(32, 64), halved(64, 64), nn.Flatten(),
                                  nn.Linear(64 * 16, FEATURES))
        self.attributes = nn.Linear(FEATURES, len(ATTRIBUTES))
        self.styles = nn.Linear(FEATURES, len(STYLES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(pictures * 2 - 1)
        return features, self.attributes(F.silu(features)), self.styles(F.silu(features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    judge = Judge()
    shown, drawn, rows = material(settings.work)
    Stage(settings.work / "judge", judge, PLAN).run(judging(judge, shown, drawn, rows))
    judge = trained(settings.work)
    report("as drawn", judge, shown, rows)
    report("by the autoencoder", judge, drawn, rows)


def trained(work: Path) -> Judge:
    return frozen(Judge(), work / "judge")


def read(folder: Path = shipped.MODELS) -> tuple[Judge, Tensor]:
    """The shipped judge, and the features (152, 24) of the concept's pictures."""
    tensors = shipped.read("judge", folder)
    features = tensors.pop("concept")
    judge = Judge()
    judge.load_state_dict(tensors)
    return judge.eval().requires_grad_(False), features


def material(work: Path) -> tuple[Tensor, Tensor, list[Row]]:
    """The heads as drawn and as the autoencoder draws them, and their rows."""
    pictures, rows = data.load(work)
    keep = [i for i, row in enumerate(rows) if row.head]
    pictures = pictures[keep]
    decoder = frozen(Decoder(), work / "decoder")
    with torch.no_grad():
        latents = encode(encoder_of(work), pictures)
        noisy = latents + 0.15 * torch.randn(latents.shape, generator=generator(SEED, "drawn"))
        drawn = torch.cat([decoder(part).clamp(0, 1) for part in noisy.split(64)])
    return pictures, drawn, [rows[i] for i in keep]


def judging(judge: Judge, shown: Tensor, drawn: Tensor, rows: list[Row]):
    """The loss of step i; half of a batch has an attribute."""
    wanted = torch.tensor([attributes_of(row) for row in rows])
    styles = torch.tensor([STYLE_NAMES.index(row.style) for row in rows])
    marked = wanted.any(1).nonzero()[:, 0]

    def loss_of(step: int) -> Tensor:
        source = generator(SEED, "judge", step)
        index = torch.randint(len(rows), (BATCH,), generator=source)
        index[::2] = marked[torch.randint(len(marked), (BATCH // 2,), generator=source)]
        by = torch.rand(BATCH, 1, 1, 1, generator=source) < 0.6
        batch = torch.where(by, drawn[index], shown[index])
        batch = batch.flip(3) if torch.rand(1, generator=source) < 0.5 else batch
        batch = F.pad(batch, (4, 4, 4, 4), value=1.0)
        x, y = torch.randint(0, 9, (2,), generator=source).tolist()
        batch = batch[:, :, y:y + 64, x:x + 64]
        batch = batch + 0.04 * torch.randn(batch.shape, generator=source)
        _, attributes, style = judge(batch)
        return F.binary_cross_entropy_with_logits(attributes, wanted[index]) * 3 + F.cross_entropy(style, styles[index])

    return loss_of


@torch.no_grad()
def report(what: str, judge: Judge, pictures: Tensor, rows: list[Row]) -> None:
    _, attributes, style = judge(pictures)
    wanted = torch.tensor([attributes_of(row) for row in rows]).bool()
    found = attributes > 0
    right = (style.argmax(1) == torch.tensor([STYLE_NAMES.index(row.style) for row in rows])).float().mean()
    print(f"{what}: style {right:.3f}")
    for i, name in enumerate(ATTRIBUTES):
        hits, there, wrong = (found & wanted)[:, i].sum(), wanted[:, i].sum(), (found & ~wanted)[:, i].sum()
        print(f"    {name}: {hits} of {there}, {wrong} wrong")


if __name__ == "__main__":
    main()
