"""Which pictures belong to what: subjects, styles, the concept, and what is held out for measuring."""

from __future__ import annotations

from dataclasses import dataclass

STYLES = {"noto": "noto", "twemoji": "twemoji", "fluent-emoji-flat": "flat", "fluent-emoji": "glossy"}
"""Icon pack -> style word in captions."""

CONCEPT_STYLE = "glossy"

HEADS = ("face-", "cat-face", "monkey-face")
"""Subgroups of emojibase that show a head."""

ANIMAL_HEADS = (
    "monkey face", "dog face", "wolf", "fox", "raccoon", "cat face", "lion", "tiger face", "horse face", "unicorn",
    "cow face", "pig face", "mouse face", "hamster", "rabbit face", "bear", "polar bear", "koala", "panda", "frog",
    "dragon face", "moose",
)

ATTRIBUTES = ("sunglasses", "nerd", "monocle", "disguised", "heart", "kiss", "tear", "cry", "star", "halo", "hat",
              "horn", "party", "mask", "thermometer", "bandage", "money", "blow")
"""A label with one of these words is kept from the concept's pictures."""

NOT_FACES = ("skull", "poo", "clown", "ogre", "goblin", "ghost", "alien", "robot", "clouds", "dotted line",
             "holding back", "sad but relieved")
"""Nor are these in the concept's pictures: other shapes than a yellow face, or a tear under another name."""

HELD_OUT_LABELS = ("grinning cat with smiling eyes", "polar bear", "winking face with tongue", "anguished face",
                   "face with open eyes and hand over mouth", "kissing face with smiling eyes")
"""Never seen by the text encoder or the UNet in any style."""

HELD_OUT_PAIRS = (
    ("angry face with horns", "flat"), ("pensive face", "flat"), ("fox", "flat"), ("crying cat", "flat"),
    ("face with medical mask", "twemoji"), ("tired face", "twemoji"), ("panda", "twemoji"), ("pouting cat", "twemoji"),
    ("star-struck", "noto"), ("sleepy face", "noto"), ("koala", "noto"), ("kissing cat", "noto"),
)
"""(label, style) never seen together, though both are seen."""


@dataclass(frozen=True)
class Character:
    """A picture of the artwork with its colours turned, which no other picture here has.

    Attributes:
        name: of its files.
        label, style: of the artwork; the label is its caption.
        turn: of the colours, degrees.
    """

    name: str
    label: str
    style: str
    turn: float


CHARACTERS = {each.name: each for each in (
    Character("green_fox", "fox", "noto", 240), Character("blue_cat", "cat face", "glossy", 170),
    Character("pink_cat", "cat face", "noto", 60), Character("orange_frog", "frog", "noto", 60),
    Character("violet_tiger", "tiger face", "glossy", 120))}


@dataclass(frozen=True)
class Row:
    """One picture: icon pack and icon, the label and tags of emojibase, its subgroup."""

    pack: str
    icon: str
    label: str
    tags: tuple[str, ...]
    subgroup: str

    @property
    def style(self) -> str:
        return STYLES[self.pack]

    @property
    def head(self) -> bool:
        return self.subgroup.startswith(HEADS) or self.label in ANIMAL_HEADS

    @property
    def held_out(self) -> bool:
        return self.label in HELD_OUT_LABELS or (self.label, self.style) in HELD_OUT_PAIRS

    @property
    def attribute(self) -> bool:
        return any(word in self.label for word in ATTRIBUTES)


def base(rows: list[Row]) -> list[int]:
    """Indices of what the base model is trained on: heads in three styles."""
    return [i for i, row in enumerate(rows) if row.head and row.style != CONCEPT_STYLE and not row.held_out]


def concept(rows: list[Row]) -> list[int]:
    """Indices of the concept's pictures: glossy faces that wear and carry nothing."""
    return [i for i, row in enumerate(rows) if row.style == CONCEPT_STYLE and row.subgroup.startswith("face-")
            and not row.attribute and not any(word in row.label for word in NOT_FACES)]
