"""``python -m benchmarks.subjects.two``: two subjects in one picture, by words tuned contrastively before, and without.

CLIF on pictures (arXiv 2405.06914), on the base in which two heads bind (``benchmarks.pictures.train_two``). Stage one
tunes the words of all subjects together; stage two teaches each pair of them, from tuned words and from untuned ones,
with the same seed and steps. Then both are asked for in one prompt. Prints the tables of PICTURES.md and writes two.jpg
beside this file. What is done is kept, so an interrupted run goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gcfg.guidance import presets

from . import characters, contrast
from .characters import MIP, SIZE, ZOG, Character, like
from .intervals import interval
from .narrow import PROMPT, Lesson, Taught, loaded, teach
from .study import CLASS, SCALE, Study, settings

HERE = Path(__file__).parent
Pair = tuple[Character, Character]
PAIRS: dict[str, Pair] = {
    "nothing alike": (ZOG, MIP),
    "but for the top alike": (like("vio", "violet", "round", "antennae"), like("lav", "violet", "round", "ears")),
    "but for the shape alike": (like("tan", "orange", "square", "ears"), like("api", "orange", "round", "ears")),
    "but for near colours alike": (like("pip", "pink", "square", "antennae"), like("ros", "red", "square", "antennae"))}
RUNS, SEEDS = (1, 2, 3), range(100, 104)
"""Seeds of training, of both stages; of pictures."""
STEPS = 300
"""Of stage two."""
UNTUNED, SCATTERED, WITHOUT_MIXES, LONGER, TUNED = WORDS = ("untuned", "scattered", "tuned without mixes",
                                                            "tuned longer", "tuned")
"""Two rows of the noun; moved from there by chance, as far as tuning moves them; tuned."""
COMPARED = ((TUNED, UNTUNED), (TUNED, SCATTERED), (TUNED, WITHOUT_MIXES), (LONGER, UNTUNED), (LONGER, SCATTERED),
            (LONGER, WITHOUT_MIXES))
LONGER_STEPS = 550
"""Of stage one, that it shows as many single views as without mixes: 16 of 44 are."""
SHOWN = 3
"""Pictures of each order that are kept to look at."""


def main() -> None:
    chosen = settings("benchmarks.subjects.two", __doc__, HERE)
    study = Two(chosen.work)
    base, found = study.base(), study.run()
    print("\n".join([*table(base, found), "", *by_pair(found)]))
    study.grid().save(chosen.out / "two.jpg", quality=65)


class Two(Study):
    """Figures of the base by pair, and of runs by words and (pair, run)."""

    def __init__(self, work: Path, pairs: dict[str, Pair] = PAIRS, runs: Sequence[int] = RUNS,
                 name: str | Path = "two_study"):
        super().__init__(work, "two", name)
        self.pairs, self.runs = pairs, runs
        self.subjects = [who for pair in pairs.values() for who in pair]
        self.folders = {who.name: characters.draw(who, self.folder / who.name) for who in self.subjects}
        self.words = cache(self.words)  # those of a run serve every pair

    def base(self) -> list[dict[str, float]]:
        """What the base alone draws of pairs that are described in words."""
        return [self.kept(f"{name}, base", lambda pair=pair, name=name: self.seen(
            self.family.unet, [who.described for who in pair], (), pair, f"{name}, base"))
            for name, pair in self.pairs.items()]

    def run(self) -> dict[str, dict[str, list[dict[str, float]]]]:
        """By words and pair, a run each."""
        return {words: {name: [self.kept(f"{name}, {words}, run {seed}", lambda words=words, name=name, seed=seed:
                                         self.taught(name, words, seed)) for seed in self.runs]
                        for name in self.pairs} for words in WORDS}

    def taught(self, name: str, words: str, seed: int) -> dict[str, float]:
        """Stage two of a pair, and what its pictures show."""
        pair = self.pairs[name]
        rows = [row for row, who in zip(self.words(words, seed), self.subjects, strict=True) if who in pair]
        begun = contrast.cosine(self.family, rows)
        made = self.teach(pair, rows, seed)
        found = self.seen(made.unet, [f"<{k}> {CLASS}" for k in range(2)], made.rows, pair,
                          f"{name}, {words}" if seed == self.runs[0] else "")
        return found | {"cosine before": begun, "cosine after": contrast.cosine(self.family, made.rows)}

    @cached_property
    def tower(self) -> contrast.Tower:
        return contrast.tower(self.family, self.work, self.work / "two" / "tower")

    def words(self, words: str, seed: int) -> list[Tensor]:
        """The words of all subjects after stage one, or what stands in its place."""
        untuned = contrast.untuned(self.family, len(self.subjects), CLASS)
        if words == UNTUNED:
            return untuned
        shown = [loaded(self.folders[who.name]) for who in self.subjects]
        tuned = contrast.tuned(self.family, self.tower, shown, CLASS, seed, words != WITHOUT_MIXES,
                               LONGER_STEPS if words == LONGER else contrast.TUNED_STEPS)
        return contrast.scattered(untuned, tuned, seed) if words == SCATTERED else tuned

    def teach(self, pair: Pair, rows: Sequence[Tensor], seed: int) -> Taught:
        lessons = [Lesson.of(self.family, self.folders[who.name], k, CLASS) for k, who in enumerate(pair)]
        return teach(self.family, lessons, rows, 0.0, seed, STEPS)

    def seen(self, unet, names: Sequence[str], rows: Sequence[Tensor], pair: Pair, keep: str) -> dict[str, float]:
        """Each subject alone, and both in one picture, the one or the other named first."""
        def drawn(texts: list[str], wide: bool) -> Tensor:
            return self.drawn({"base": unet}, presets.classifier_free(SCALE),
                              {"positive": [f"{PROMPT} {text}" for text in texts]}, rows, SEEDS, wide)
        first, second = names
        alone = drawn([first, second], False)
        both = drawn([f"{first} and {second}", f"{second} and {first}"], True)
        if keep:
            self.keep(keep, torch.cat([part[:SHOWN] for part in both.split(len(SEEDS))]))
        found = [counted(*(self.halves(part[..., at:at + SIZE], order) for at in (0, SIZE)))
                 for part, order in zip(both.split(len(SEEDS)), (pair, pair[::-1]), strict=True)]
        own = [self.eye.share(shown, **who.looks) for shown, who in zip(alone.split(len(SEEDS)), pair, strict=True)]
        return {"each alone": statistics.mean(own)} | {key: statistics.mean(each[key] for each in found)
                                                       for key in found[0]}

    def halves(self, pictures: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        """Whether each shows the first, the second in every respect, (B, 2); which of them it is nearer to, (B,)."""
        shows = [[self.eye.share(picture[None], **who.looks) > 0 for who in pair] for picture in pictures]
        nearer = torch.stack([self.eye.likelihood(pictures, **who.looks) for who in pair]).argmax(0)
        return torch.tensor(shows), nearer

    def grid(self) -> Image.Image:
        """A row a pair, a column the base and each kind of words; one order over the other, of the first run."""
        width, height, columns = 2 * SIZE, 2 * SIZE + 16, ("base", *WORDS)
        sheet = Image.new("RGB", ((width + 12) * len(columns), height * len(self.pairs) + 16), "white")
        pen = ImageDraw.Draw(sheet)
        for column, words in enumerate(columns):
            x = (width + 12) * column
            pen.text((x + 4, 2), words, fill="black")
            for row, name in enumerate(self.pairs):
                strip, y = Image.open(self.folder / f"{name}, {words}.png"), 16 + height * row
                for order in range(2):
                    start = order * strip.width // 2
                    sheet.paste(strip.crop((start, 0, start + width, SIZE)), (x, y + SIZE * order))
        return sheet.resize((3 * sheet.width // 2, 3 * sheet.height // 2), Image.Resampling.LANCZOS)


def counted(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> dict[str, float]:
    """What the halves of wide pictures show, see ``Two.halves``, of which the first named should be left.

    *half*: whom it should, in every respect; *both*: both halves; *nearer*: it is nearer to whom it should be than to
    the other; *twice*: both halves are nearer to the same one.
    """
    half = torch.stack([left[0][:, 0], right[0][:, 1]])
    shares = {"half": half, "both": half.all(0), "nearer": torch.stack([left[1] == 0, right[1] == 1]),
              "twice": left[1] == right[1]}
    return {key: float(share.float().mean()) for key, share in shares.items()}


def table(base: Sequence[dict], found: dict[str, dict[str, list[dict]]]) -> list[str]:
    """Means over pairs and runs; what tuned words change, with the 95 % interval of the paired difference."""
    columns = ["each alone", "half", "both", "nearer", "twice", "cosine before", "cosine after"]
    runs = {words: [run for pair in by.values() for run in pair] for words, by in found.items()}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, shown in ({"base, described": base} | runs).items():
        lines.append(f"| {name} | " + " | ".join(
            f"{statistics.mean(run[column] for run in shown):.2f}" if column in shown[0] else "" for column in columns
        ) + " |")
    for words, other in COMPARED:
        cells = []
        for column in columns:
            changes = [after[column] - before[column] for before, after in zip(runs[other], runs[words], strict=True)]
            low, high = interval(changes)
            cells.append(f"{statistics.mean(changes):+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append(f"| {words} less {other} | " + " | ".join(cells) + " |")
    return lines


def by_pair(found: dict[str, dict[str, list[dict]]]) -> list[str]:
    """*both* and *twice* of each pair."""
    lines = ["| *both*; *twice* | " + " | ".join(WORDS) + " |", "|---" * (len(WORDS) + 1) + "|"]
    for name in found[UNTUNED]:
        cells = ["; ".join(f"{statistics.mean(run[key] for run in found[words][name]):.2f}"
                           for key in ("both", "twice")) for words in WORDS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
