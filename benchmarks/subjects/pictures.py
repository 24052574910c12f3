"""``python -m benchmarks.subjects.pictures``: ClassDiffusion on pictures, with a text encoder that is contextual.

Identity and obedience of one subject over the semantic weight and over class-guided's subject scale, and what the base
draws of words alone. Prints the tables of PICTURES.md and writes pictures.jpg beside this file. What is done is kept,
so an interrupted run goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gcfg.guidance import presets

from . import characters
from .characters import ZOG
from .narrow import PROMPT, Lesson, Taught, teach
from .study import CLASS, SCALE, Study, settings

HERE = Path(__file__).parent
WEIGHTS, SCALES, RUNS = (0.0, 0.25, 2.0), (1.0, 2.0, 2.5, 3.0), (1, 2, 3)
"""Semantic weights; subject scales of class-guided; seeds of a run of training."""
STEPS = 100
REQUESTS = {"sunglasses": "with sunglasses", "halo": "with halo", "mask": "with medical mask",
            "hearts": "with heart-eyes"}
"""What the eye is to find -> what is asked for."""
ASKED = ("sunglasses", "mask")
"""Of the subject."""
SEEDS = range(100, 104)
SHOWN_PROMPTS = (("red", "round", "ears", "sunglasses"), ("pink", "square", "hair", "mask"),
                 ("orange", "hexagon", "horns", "hearts"), ("turquoise", "flower", "antennae", "sunglasses"))
HELD_OUT = (("blue", "round", "antennae", "sunglasses"), ("blue", "square", "antennae", "mask"),
            ("green", "square", "ears", "sunglasses"), ("green", "hexagon", "horns", "sunglasses"))
"""Colour, shape, top and what is worn; the base was shown the first four and never a pair of the others."""


def main() -> None:
    chosen = settings("benchmarks.subjects.pictures", __doc__, HERE)
    study = One(chosen.work)
    base, one = study.base(), study.one()
    print("\n".join([*table(base), "", *table(one)]))
    study.strips().save(chosen.out / "pictures.jpg", quality=90)


class One(Study):
    """One subject, by the semantic weight and class-guided."""

    def __init__(self, work: Path):
        super().__init__(work, "composed", "subjects_study")
        self.own = characters.draw(ZOG, self.folder / ZOG.name)

    def one(self) -> dict[str, list[dict]]:
        """Figures of each run by what is varied."""
        found: dict[str, list[dict]] = {}
        for seed in RUNS:
            for weight in WEIGHTS:
                taught: list[Taught] = []

                def run(weight=weight, seed=seed, taught=taught) -> Taught:
                    if not taught:
                        lesson = Lesson.of(self.family, self.own)
                        row = self.family.row(CLASS)
                        taught.append(teach(self.family, [lesson], [row], weight, seed, STEPS))
                    return taught[0]
                name = f"weight {weight:g}"
                found.setdefault(name, []).append(self.kept(f"{name}, run {seed}", lambda run=run, name=name, seed=seed:
                                                            self.seen(run(), None, name, seed)))
                for scale in SCALES if weight == WEIGHTS[1] else ():
                    name = f"class-guided, scale {scale:g}"
                    found.setdefault(name, []).append(
                        self.kept(f"{name}, run {seed}", lambda run=run, scale=scale, name=name, seed=seed:
                                  self.seen(run(), scale, name, seed)))
        return found

    def base(self) -> dict[str, list[dict]]:
        """What the base draws of words alone: of looks that it was shown, and of looks that it was not."""
        def run(asked: tuple, name: str) -> dict[str, float]:
            texts = [f"{colour} {shape} face with {top} {REQUESTS[worn]}" for colour, shape, top, worn in asked]
            drawn = self.drawn({"base": self.family.unet}, presets.classifier_free(SCALE), {"positive": texts}, (),
                               SEEDS)
            self.keep(name, drawn[::len(SEEDS)])
            found: dict[str, list[float]] = {}
            for shown, answers in zip(drawn.split(len(SEEDS)), asked, strict=True):
                right = dict(zip(("colour", "shape", "top", "worn"), answers, strict=True))
                for question in (*right, "all"):
                    wanted = right if question == "all" else {question: right[question]}
                    found.setdefault(question, []).append(self.eye.share(shown, **wanted))
            return {question: statistics.mean(shares) for question, shares in found.items()}
        return {name: [self.kept(name, lambda asked=asked, name=name: run(asked, name))]
                for name, asked in (("base, shown", SHOWN_PROMPTS), ("base, never shown", HELD_OUT))}

    def seen(self, taught: Taught, scale: float | None, name: str, seed: int) -> dict[str, float]:
        """What a run's pictures show; by plain CFG of the tuned model, or class-guided."""
        def pictures(request: str) -> Tensor:
            positive = [f"{PROMPT} <0> {CLASS} {request}".strip()]
            if scale is None:
                return self.drawn({"base": taught.unet}, presets.classifier_free(SCALE), {"positive": positive},
                                  taught.rows, SEEDS)
            return self.drawn({"base": self.family.unet, "tuned": taught.unet}, presets.class_guided(SCALE, scale),
                              {"positive": positive, "class": [f"{CLASS} {request}".strip()]}, taught.rows, SEEDS)
        return self.figures(pictures, name, seed) | {"semantic distance": taught.distance}

    def figures(self, pictures: Callable[[str], Tensor], name: str, seed: int) -> dict[str, float]:
        plain = pictures("")
        asked = {worn: pictures(REQUESTS[worn]) for worn in ASKED}
        shares = {"identity": [self.eye.share(plain, **ZOG.looks)],
                  "identity, asked": [self.eye.share(shown, **ZOG.looks) for shown in asked.values()],
                  "obedience": [self.eye.share(shown, worn=worn) for worn, shown in asked.items()],
                  "both": [self.eye.share(shown, worn=worn, **ZOG.looks) for worn, shown in asked.items()]}
        if seed == RUNS[0]:
            self.keep(name, torch.cat([plain[:2], *(shown[:3] for shown in asked.values())]))
        return {key: statistics.mean(values) for key, values in shares.items()}

    def strips(self) -> Image.Image:
        """The kept strips of this study."""
        return self.sheet(["base, never shown", *(f"weight {weight:g}" for weight in WEIGHTS),
                           *(f"class-guided, scale {scale:g}" for scale in SCALES)])


def table(rows: dict[str, list[dict]]) -> list[str]:
    """Mean, and smallest to largest of the runs."""
    columns = list(next(iter(rows.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs if column in run]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
