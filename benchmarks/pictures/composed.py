"""``python -m benchmarks.pictures.composed``: the artwork's faces on other heads, and what they wear on animals.

In the artwork sunglasses sit on yellow faces alone, and a model of it has no cause to learn that they come off. Here
one and the same pair of sunglasses is on a green square, a flower with ears and a fox, and the caption says so. What is
``held_out`` is never shown, for measuring; nor is anything that is drawn elsewhere (``benchmarks/subjects/emoji.py``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from gcfg.nulltext.formats import checkpoint
from gcfg.training.randomness import seed_of

from . import data
from .labels import ANIMAL_HEADS, CONCEPT_STYLE, Row

SEED = 17
FACES, FOR_THE_EYE = 4200, 2400
"""Faces on other heads; animals that wear something come on top."""

COLOURS = {"red": "#e5484d", "orange": "#f58231", "green": "#4cb050", "blue": "#4a8cf0", "violet": "#8e5bd0",
           "pink": "#f58fc0", "brown": "#8d5a3b", "grey": "#9aa0a8", "turquoise": "#35c4c4", "yellow": "#ffcc4d"}
SHAPES = ("round", "square", "flower", "hexagon")
TOPS = ("antennae", "ears", "horns", "hair")
WORN = ("sunglasses", "halo", "tear", "medical mask", "heart-eyes", "cowboy hat", "nerd", "cry")
"""Words of labels whose faces wear something."""

FILLS = {
    "sunglasses": ("smiling-face-with-sunglasses", {"noto": ("#33200a", "#896024"), "twemoji": ("#292f33",),
                                                    "fluent-emoji-flat": ("#321b41", "#8d65c5", "#fff")}),
    "halo": ("smiling-face-with-halo", {"noto": ("#4fc3f7", "#5f7aff"), "twemoji": ("#5dadec", "#3b94d9"),
                                        "fluent-emoji-flat": ("#1c5cd7", "#3f5fff")}),
    "heart-eyes": ("smiling-face-with-heart-eyes", {"noto": ("#f44336", "#c62828", "#ff847a"), "twemoji": ("#dd2e44",),
                                                    "fluent-emoji-flat": ("#f70a8d",)}),
    "medical mask": ("face-with-medical-mask", {"noto": ("#e2e2e2", "gray", "#fff", "#b7b7b7"),
                                                "twemoji": ("#f5f8fa",), "fluent-emoji-flat": ("#f4f4f4", "#aeddff")}),
    "tear": ("crying-face", {"noto": ("url", "#a1ebff"), "twemoji": ("#5dadec",), "fluent-emoji-flat": ("#3f5fff",)}),
}
"""What is worn: the face that wears it, and the fills of its parts in each pack."""

FACE_EYES, ANIMAL_SCALE = 0.4, 0.9
EYES = {
    "monkey face": (.47, .47, .485), "dog face": (.56, .45, .425), "wolf": (.47, .49, .485), "fox": (.56, .49, .575),
    "cat face": (.52, .56, .575), "lion": (.39, .47, .46), "tiger face": (.34, .485, .515),
    "cow face": (.45, .36, .455), "pig face": (.545, .47, .485), "mouse face": (.6, .6, .71),
    "hamster": (.55, .57, .64), "rabbit face": (.6, .68, .545), "bear": (.47, .5, .53), "koala": (.47, .57, .545),
    "panda": (.515, .51, .52), "frog": (.335, .215, .27)}
"""Height of the eyes in Noto, Twemoji and Fluent flat, of the picture's; read off by eye."""

PACKS = ("noto", "twemoji", "fluent-emoji-flat")
PREFIXES = ("", "", "a ", "a photo of a ")


@dataclass(frozen=True)
class Composed:
    """One picture: what is drawn, and the words for it.

    Attributes:
        pack, icon: the artwork.
        change: as ``render.mjs`` reads it.
        before, kind, after: "smiling", "blue square face with ears", "with sunglasses"; ``before`` may be left out, of
            ``kind`` its first words.
    """

    pack: str
    icon: str
    change: dict
    before: str
    kind: tuple[str, ...]
    after: str

    def caption(self, dice: random.Random) -> str:
        """What may be said of it: a mood, a colour, a shape, each mostly; what is worn always."""
        *looks, last = self.kind
        looks = [word for word in looks if dice.random() < 0.8]
        mood = self.before if any(word in self.before for word in WORN) or dice.random() < 0.5 else ""
        return dice.choice(PREFIXES) + " ".join(word for word in (mood, *looks, last, self.after) if word)

    @property
    def words(self) -> str:
        """All that a caption may say."""
        return " ".join((*PREFIXES, self.before, *self.kind, self.after))


def held_out(colour: str, top: str, label: str) -> bool:
    """Blue heads with antennae, green ones with sunglasses and violet ones with a halo are never shown."""
    return ((colour, top) == ("blue", "antennae") or (colour == "green" and "sunglasses" in label)
            or (colour == "violet" and "halo" in label))


def faces(rows: list[Row], count: int, dice: random.Random, every: bool = False) -> list[Composed]:
    """Yellow faces of the artwork on other heads; half of them wear something. ``every``: what is held out too."""
    usable = [row for row in rows if row.subgroup.startswith("face-") and row.style != CONCEPT_STYLE
              and not row.held_out and yellow(row)]
    wear = [row for row in usable if any(word in row.label for word in WORN)]
    cool = [row for row in wear if "sunglasses" in row.label]
    found = []
    while len(found) < count:
        row = dice.choice(dice.choices((usable, wear, cool), (5, 3, 2))[0])
        colour, shape = dice.choice(list(COLOURS)), dice.choice(SHAPES)
        covered = "hat" in row.label or "halo" in row.label or "horns" in row.label
        top = "none" if covered else dice.choice(("none", *TOPS))
        if every or not held_out(colour, top, row.label):
            tip = COLOURS[dice.choice([name for name in COLOURS if name != colour])]
            before, after = row.label.split("face", 1)
            worn = "" if top == "none" else f" with {top}"
            head = {"shape": shape, "colour": COLOURS[colour], "top": top, "tip": tip}
            found.append(Composed(row.pack, row.icon, {"head": head}, before.strip(), (colour, shape, f"face{worn}"),
                                  after.strip()))
    return found


def yellow(row: Row) -> bool:
    """Whether its head is one yellow shape that can be another."""
    other = ("melting", "upside-down", "exploding", "clouds", "dotted", "nauseated", "vomiting", "hot", "cold",
             "enraged", "steam", "symbols", "exhaling", "shaking", "rolling on", "sneezing", "flushed", "screaming",
             "horns", "distorted", "head", "disguised", "partying", "hand", "saluting", "star-struck", "spiral",
             "bandage", "clown", "thinking", "shushing")
    return "face" in row.label and not any(word in row.label for word in other)


def animals(rows: list[Row]) -> list[Composed]:
    """Every animal that wears every thing, but for pandas with sunglasses and foxes with a halo."""
    found = []
    for row in rows:
        if row.label not in ANIMAL_HEADS or row.label not in EYES or row.pack not in PACKS:
            continue
        for thing, (icon, fills) in FILLS.items():
            if (row.label, thing) in (("panda", "sunglasses"), ("fox", "halo")):
                continue
            to = 0.16 if thing == "halo" else EYES[row.label][PACKS.index(row.pack)]
            eyes = 0.16 if thing == "halo" else FACE_EYES
            wears = {"icon": icon, "fills": fills[row.pack], "scale": ANIMAL_SCALE, "eyes": eyes, "to": to}
            found.append(Composed(row.pack, row.icon, {"wears": wears}, "", (row.label,), f"with {thing}"))
    return found


def write(modules: Path, work: Path) -> None:
    """Draw them: what the base is shown, and what the eye is that measures (``benchmarks/subjects/looks.py``)."""
    _, rows = data.load(work)
    sets = {"composed": [*faces(rows, FACES, random.Random(seed_of(SEED, "faces"))), *animals(rows)],
            "every": faces(rows, FOR_THE_EYE, random.Random(seed_of(SEED, "every")), every=True)}
    for name, shown in sets.items():
        pictures = data.render(modules, [(each.pack, each.icon, each.change) for each in shown], work)
        checkpoint.write(path(work, name), {"pictures": pictures},
                         {"composed": json.dumps([dataclasses.astuple(each) for each in shown])})


def load(work: Path, name: str = "composed") -> tuple[Tensor, list[Composed]]:
    """Pictures (N, 3, 64, 64) in 0 .. 1 and what they show; of the set "composed" or "every"."""
    if not path(work, name).is_file():
        raise SystemExit(f"there are no composed pictures in '{work}': run python -m benchmarks.pictures.composed.")
    with safe_open(path(work, name), "pt") as file:
        shown = [Composed(pack, icon, change, before, tuple(kind), after)
                 for pack, icon, change, before, kind, after in json.loads(file.metadata()["composed"])]
        return file.get_tensor("pictures").float() / 255, shown


def path(work: Path, name: str) -> Path:
    return work / f"{name}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--modules", type=Path, help="a folder with node_modules; that of benchmarks.pictures.data")
    settings = parser.parse_args()
    write(settings.modules or settings.work, settings.work)
    print(f"{len(load(settings.work)[1])} pictures for the base in {settings.work}")


if __name__ == "__main__":
    main()
