"""``python -m benchmarks.subjects.critic``: a small classifier that says which of the five characters a picture shows.

Trained on the characters, on all other heads and on these with turned colours (a green bear is no green fox); and on
mixtures of any two pictures, faded into each other or side by side, with the shares of the mixture as the answer. So a
face that is half another's is half of each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcfg.training.randomness import generator

from ..pictures import data, judge, subjects
from ..pictures.labels import CHARACTERS
from ..pictures.loop import Plan, Stage, frozen
from ..pictures.vae import Decoder

SEED = 17
PLAN = Plan(steps=900, rate=3e-3, decay=0.5, weight_decay=0.05)
BATCH = 64
NAMES = tuple(CHARACTERS)
NONE = len(NAMES)


class Critic(nn.Module):
    """Pictures (B, 3, 64, 64) in 0 .. 1 -> logits (B, 6): the characters, none of them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(judge.halved(3, 16), judge.halved(16, 32), judge.halved(32, 48), nn.Flatten(),
                                  nn.Linear(48 * 16, NONE + 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.body(F.avg_pool2d(pictures, 2) * 2 - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    critic, shown = Critic(), Material(settings.work)
    Stage(settings.work / "critic", critic, PLAN).run(answering(critic, shown))
    print(report(trained(settings.work), shown))


def trained(work: Path) -> Critic:
    return frozen(Critic(), work / "critic")


class Material:
    """Pictures as drawn and as the autoencoder draws them: of the characters, and of all other heads."""

    def __init__(self, work: Path):
        as_drawn, decoded, rows = judge.material(work)
        self.heads, self.heads_decoded, self.labels = as_drawn, decoded, [row.label for row in rows]
        self.portraits = torch.cat([subjects.portrait(each, as_drawn, rows) for each in CHARACTERS.values()])
        encoder, decoder = subjects.encoder_of(work), frozen(Decoder(), work / "decoder")
        with torch.no_grad():
            self.portraits_decoded = decoder(encoder(self.portraits)).clamp(0, 1)

    def draw(self, source: torch.Generator) -> tuple[Tensor, int]:
        """A picture (3, 64, 64) and what it shows: half of them characters."""
        kind, by, turn = torch.rand(3, generator=source).tolist()
        if kind < 0.5:
            index = int(torch.randint(NONE, (1,), generator=source))
            return (self.portraits if by < 0.3 else self.portraits_decoded)[index], index
        index = int(torch.randint(len(self.heads), (1,), generator=source))
        picture = (self.heads if by < 0.3 else self.heads_decoded)[index]
        if kind > 0.65 and not any(self.labels[index] == each.label for each in CHARACTERS.values()):
            picture = subjects.turned(picture[None], 360 * turn)[0]
        return picture, NONE


def answering(critic: Critic, shown: Material):
    """The loss of step i."""

    def loss_of(step: int) -> Tensor:
        source = generator(SEED, "critic", step)
        drawn = [shown.draw(source) for _ in range(BATCH)]
        pictures = moved(torch.stack([picture for picture, _ in drawn]), source)
        answers = F.one_hot(torch.tensor([index for _, index in drawn]), NONE + 1).float()
        pictures, answers = mixed(pictures, answers, source)
        pictures = pictures + 0.04 * torch.randn(pictures.shape, generator=source)
        return F.cross_entropy(critic(pictures), answers)

    return loss_of


def moved(pictures: Tensor, source: torch.Generator) -> Tensor:
    """The batch flipped or not, and moved by up to five pixels."""
    flip = torch.rand(len(pictures), 1, 1, 1, generator=source) < 0.5
    pictures = F.pad(torch.where(flip, pictures.flip(3), pictures), (5,) * 4, value=1.0)
    x, y = torch.randint(0, 11, (2,), generator=source).tolist()
    return pictures[:, :, y:y + 64, x:x + 64]


def mixed(pictures: Tensor, answers: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """A third of the batch faded into another picture of it, a sixth cut beside one; answers by share."""
    count = len(pictures)
    other, share = torch.randperm(count, generator=source), torch.rand(count, 1, 1, 1, generator=source)
    place = torch.arange(count).view(-1, 1, 1, 1) * 6 // count
    faded = torch.where(place < 2, share, torch.ones(()))
    beside = (torch.arange(64) < 64 * share).float().expand(-1, 1, 64, -1)
    weight = torch.where(place == 2, beside, faded.expand(-1, 1, 64, 64))
    kept = weight.mean((1, 2, 3))[:, None]
    return weight * pictures + (1 - weight) * pictures[other], kept * answers + (1 - kept) * answers[other]


@torch.no_grad()
def report(critic: Critic, shown: Material) -> str:
    """What it says of the characters, of all heads, and of two characters faded into each other."""
    own = critic(shown.portraits_decoded).softmax(1)[:, :NONE].diagonal()
    heads = critic(torch.cat([shown.heads, shown.heads_decoded])).softmax(1)[:, NONE]
    half = (shown.portraits_decoded + shown.portraits_decoded.roll(1, 0)) / 2
    said, index = critic(half).softmax(1), torch.arange(NONE)
    shares = torch.cat([said[index, index], said[index, index.roll(1)]])
    return (f"characters, at least {own.min():.2f}; all other heads none of them, mean {heads.mean():.3f}; of two "
            f"faded into each other {shares.mean():.2f}, {shares.min():.2f} to {shares.max():.2f}")


if __name__ == "__main__":
    main()
