"""``python -m benchmarks.subjects.looks``: a small classifier that says how a head looks and what it wears.

The judge of ``benchmarks/pictures`` has seen sunglasses on yellow faces alone and finds them in 3 of 100 composed
pictures. This eye is trained on composed pictures, those of the base's hold-outs included, as drawn and as the
autoencoder draws them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gcfg.training.randomness import generator

from ..pictures import composed, data
from ..pictures.composed import COLOURS, SHAPES, TOPS, Composed
from ..pictures.judge import halved
from ..pictures.loop import Plan, Stage, frozen
from ..pictures.train_vae import encode, encoder_of
from ..pictures.vae import Decoder
from .critic import moved

SEED = 19
PLAN = Plan(steps=800, rate=3e-3, decay=0.6, weight_decay=0.05)
BATCH, TESTED = 64, 400
WORN = {"sunglasses": ("sunglasses",), "halo": ("halo",), "hearts": ("heart",), "mask": ("medical mask",),
        "tears": ("tear", "cry"), "hat": ("cowboy",)}
"""What is worn -> words of what is said of a picture."""

ANSWERS = {"worn": tuple(WORN), "colour": tuple(COLOURS), "shape": SHAPES, "top": ("none", *TOPS)}


class Looks(nn.Module):
    """Pictures (B, 3, 64, 64) in 0 .. 1 -> logits by question of ``ANSWERS``; several may be worn, or nothing."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(halved(3, 24), halved(24, 48), halved(48, 64), halved(64, 64), nn.Flatten(),
                                  nn.Linear(64 * 16, 64), nn.SiLU())
        self.answers = nn.ModuleDict({name: nn.Linear(64, len(kinds)) for name, kinds in ANSWERS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.body(pictures * 2 - 1)
        return {name: answer(features) for name, answer in self.answers.items()}

    @torch.no_grad()
    def share(self, pictures: Tensor, **asked: str | tuple[str, ...]) -> float:
        """The part of the pictures that look as asked in every respect: colour="blue", worn="sunglasses".

        Several answers of which one will do: top=("antennae", "horns").
        """
        said, right = self(pictures), torch.ones(len(pictures), dtype=torch.bool)
        for question, answers in asked.items():
            index, found = indices(question, answers), said[question]
            right &= (found[:, index] > 0).any(1) if question == "worn" else torch.isin(found.argmax(1),
                                                                                        torch.tensor(index))
        return float(right.float().mean())

    @torch.no_grad()
    def likelihood(self, pictures: Tensor, **asked: str | tuple[str, ...]) -> Tensor:
        """The logarithm of the probability that a picture looks as asked in every respect but what is worn, (B,)."""
        said = self(pictures)
        return sum(said[question].log_softmax(1)[:, indices(question, answers)].logsumexp(1)
                   for question, answers in asked.items())


def indices(question: str, answers: str | tuple[str, ...]) -> list[int]:
    """The indices of answers."""
    return [ANSWERS[question].index(each) for each in ((answers,) if isinstance(answers, str) else answers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    looks, shown = Looks(), Material(settings.work)
    Stage(settings.work / "looks", looks, PLAN).run(answering(looks, shown))
    print(report(trained(settings.work), shown))


def trained(work: Path) -> Looks:
    return frozen(Looks(), work / "looks")


class Material:
    """Composed pictures, as drawn and decoded (2, N, 3, 64, 64), and what is to be said of each; the last for testing.

    Attributes:
        answers: by question (N,), -1 where an animal has none; "worn" (N, 6).
    """

    def __init__(self, work: Path):
        (of_base, first), (faces, rest) = composed.load(work), composed.load(work, "every")
        animals = [i for i, each in enumerate(first) if "wears" in each.change]
        drawn, shown = torch.cat([of_base[animals], faces]), [*(first[i] for i in animals), *rest]
        self.pictures = torch.stack([drawn, decoded(drawn, work)])
        self.answers = {"worn": torch.tensor([worn(each) for each in shown])} | {
            name: torch.tensor([place(name, each) for each in shown]) for name in ("colour", "shape", "top")}

    def __len__(self) -> int:
        return len(self.answers["worn"]) - TESTED


def worn(each: Composed) -> list[float]:
    said = f"{each.before} {each.after}"
    return [float(any(word in said for word in words)) for words in WORN.values()]


def place(question: str, each: Composed) -> int:
    """The index of the answer; -1 for animals."""
    if "head" not in each.change:
        return -1
    colour, shape, _ = each.kind
    return ANSWERS[question].index({"colour": colour, "shape": shape, "top": each.change["head"]["top"]}[question])


def decoded(pictures: Tensor, work: Path) -> Tensor:
    """The pictures as the autoencoder draws them of slightly noisy latents, kept in a file."""
    path = work / "looks" / "decoded.safetensors"
    if not path.is_file():
        decoder = frozen(Decoder(), work / "decoder")
        with torch.no_grad():
            latents = encode(encoder_of(work), pictures)
            noisy = latents + 0.1 * torch.randn(latents.shape, generator=generator(SEED, "decoded"))
            drawn = torch.cat([decoder(part).clamp(0, 1) for part in noisy.split(64)])
        path.parent.mkdir(exist_ok=True)
        save_file({"decoded": drawn.mul(255).round().byte()}, path)
    return load_file(path)["decoded"].float() / 255


def answering(looks: Looks, shown: Material):
    """The loss of step i."""

    def loss_of(step: int) -> Tensor:
        source = generator(SEED, "looks", step)
        index = torch.randint(len(shown), (BATCH,), generator=source)
        pictures = moved(shown.pictures[torch.randint(2, (BATCH,), generator=source), index], source)
        said = looks(pictures + 0.04 * torch.randn(pictures.shape, generator=source))
        loss = 3 * F.binary_cross_entropy_with_logits(said.pop("worn"), shown.answers["worn"][index])
        return loss + sum(F.cross_entropy(found, shown.answers[name][index], ignore_index=-1)
                          for name, found in said.items())

    return loss_of


@torch.no_grad()
def report(looks: Looks, shown: Material) -> str:
    """How often it is right on pictures that it has not seen, drawn by the autoencoder."""
    said = looks(shown.pictures[1, -TESTED:])
    lines = []
    for name, found in said.items():
        wanted = shown.answers[name][-TESTED:]
        if name == "worn":
            seen, there = found > 0, wanted > 0
            lines += [f"{each}: {int((seen & there)[:, k].sum())} of {int(there[:, k].sum())}, "
                      f"{int((seen & ~there)[:, k].sum())} wrong" for k, each in enumerate(ANSWERS[name])]
        else:
            lines.append(f"{name}: {float((found.argmax(1) == wanted).float().mean()):.3f} right")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
