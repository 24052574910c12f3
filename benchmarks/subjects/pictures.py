"""``python -m benchmarks.subjects.pictures``: ClassDiffusion on pictures, with a text encoder that is contextual.

Identity and obedience of one subject over the semantic weight and over class-guided's subject scale, and what the base
draws of words alone. Prints the tables of PICTURES.md and writes pictures.jpg beside this file. What is done is kept,
so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gcfg.guidance import Recipe, presets

from ..pictures import data
from . import characters, looks
from .characters import ZOG
from .narrow import PROMPT, Family, Lesson, Taught, teach

HERE = Path(__file__).parent
WEIGHTS, SCALES, RUNS = (0.0, 0.25, 2.0), (1.0, 2.0, 2.5, 3.0), (1, 2, 3)
"""Semantic weights; subject scales of class-guided; seeds of a run of training."""
GUIDED = (1, 2)
"""Runs that are sampled class-guided."""
STEPS, SCALE, CLASS = 100, 4.0, "face"
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
    parser = argparse.ArgumentParser("python -m benchmarks.subjects.pictures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK, help="the work folder of benchmarks.pictures")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(chosen.work)
    base, one = study.base(), study.one()
    print("\n".join([*table(base), "", *table(one)]))
    study.sheet().save(chosen.out / "pictures.jpg", quality=90)


class Study:
    """Runs of training and what their pictures show; figures and the first pictures of each kind are kept on disk."""

    def __init__(self, work: Path):
        self.family, self.eye = Family(work / "composed" / "models"), looks.trained(work)
        self.folder = work / "subjects_study"
        self.folder.mkdir(exist_ok=True)
        self.own = characters.draw(ZOG, self.folder / ZOG.name)

    def kept(self, name: str, make: Callable[[], dict]) -> dict:
        """The figures of that name, made where they are not on disk."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            path.write_text(json.dumps(make()), "utf-8")
            print(name, path.read_text("utf-8"), flush=True)
        return json.loads(path.read_text("utf-8"))

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
                for scale in SCALES if weight == WEIGHTS[1] and seed in GUIDED else ():
                    name = f"class-guided, scale {scale:g}"
                    found.setdefault(name, []).append(
                        self.kept(f"{name}, run {seed}", lambda run=run, scale=scale, name=name, seed=seed:
                                  self.seen(run(), scale, name, seed)))
        return found

    def base(self) -> dict[str, list[dict]]:
        """What the base draws of words alone: of looks that it was shown, and of looks that it was not."""
        def run(asked: tuple, name: str) -> dict[str, float]:
            texts = [f"{colour} {shape} face with {top} {REQUESTS[worn]}" for colour, shape, top, worn in asked]
            drawn = self.drawn({"base": self.family.unet}, presets.classifier_free(SCALE), {"positive": texts})
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
                                  taught.rows)
            return self.drawn({"base": self.family.unet, "tuned": taught.unet}, presets.class_guided(SCALE, scale),
                              {"positive": positive, "class": [f"{CLASS} {request}".strip()]}, taught.rows)
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

    def drawn(self, models: dict, recipe: Recipe, texts: dict[str, list[str]], rows=()) -> Tensor:
        with torch.no_grad():
            features = {name: self.family.read(listed, rows)[0] for name, listed in texts.items()}
            features["unconditional"] = self.family.read([""])[0]
        return self.family.pictures(models, recipe, features, SEEDS)

    def keep(self, name: str, pictures: Tensor) -> None:
        rows = (pictures.movedim(1, 3) * 255).round().byte().numpy()
        strip = Image.new("RGB", (sum(row.shape[1] for row in rows), 64), "white")
        for k, row in enumerate(rows):
            strip.paste(Image.fromarray(row), (k * row.shape[1], 0))
        strip.save(self.folder / f"{name}.png")

    def sheet(self) -> Image.Image:
        """The kept strips under their names, twice their size."""
        names = ["base, never shown", *(f"weight {weight:g}" for weight in WEIGHTS),
                 *(f"class-guided, scale {scale:g}" for scale in SCALES)]
        strips = [Image.open(self.folder / f"{name}.png") for name in names]
        canvas = Image.new("RGB", (2 * max(strip.width for strip in strips), 146 * len(strips)), "white")
        for k, (name, strip) in enumerate(zip(names, strips, strict=True)):
            ImageDraw.Draw(canvas).text((4, 146 * k + 3), name, fill="black")
            canvas.paste(strip.resize((2 * strip.width, 128), Image.Resampling.LANCZOS), (0, 146 * k + 18))
        return canvas


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
