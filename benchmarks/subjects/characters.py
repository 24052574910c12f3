"""Characters of one's own, drawn here: no model has seen them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw

from ..pictures.composed import COLOURS

SIZE, LARGE = 64, 256
MOODS = (("smile", 0.0, 1.0), ("open", 8.0, 0.96), ("sad", -8.0, 0.98), ("flat", 4.0, 0.94))
"""Mouth, tilt in degrees, scale of each of the four pictures."""


@dataclass(frozen=True)
class Character:
    """A head that can be told by ``looks``.

    Attributes:
        name: of its word.
        colour, shape, top: as composed pictures are described.
        seen: what the eye (``looks``) takes its top for; thin antennae with red ends are horns to it as often as not.
        skin, ink, tip: RGB.
    """

    name: str
    colour: str
    shape: str
    top: str
    seen: tuple[str, ...]
    skin: tuple[int, int, int]
    ink: tuple[int, int, int]
    tip: tuple[int, int, int]

    @property
    def looks(self) -> dict[str, str | tuple[str, ...]]:
        """What the eye is to see."""
        return {"colour": self.colour, "shape": self.shape, "top": self.seen}

    @property
    def described(self) -> str:
        """As captions of composed pictures describe such a head."""
        return f"{self.colour} {self.shape} face with {self.top}"


ZOG = Character("zog", "blue", "round", "antennae", ("antennae", "horns"), (70, 140, 240), (25, 35, 70), (230, 50, 60))
MIP = Character("mip", "green", "square", "ears", ("ears",), (70, 175, 80), (30, 60, 30), (250, 205, 80))


def like(name: str, colour: str, shape: str, top: str) -> Character:
    """One in a colour of the composed pictures; its top's tips are those of the two above."""
    own = ZOG if top == ZOG.top else MIP
    return Character(name, colour, shape, top, own.seen, ImageColor.getrgb(COLOURS[colour]), (35, 35, 45), own.tip)


def portrait(who: Character, mouth: str, tilt: float, scale: float) -> Image.Image:
    """One picture, (256, 256), of one of four moods."""
    head = Image.new("RGBA", (LARGE, LARGE), (255, 255, 255, 0))
    pen = ImageDraw.Draw(head)
    _top(pen, who)
    if who.shape == "round":
        pen.ellipse((24, 42, 232, 250), fill=who.skin)
    else:
        pen.rounded_rectangle((30, 46, 226, 248), 30, fill=who.skin)
    for x in (92, 164):
        pen.ellipse((x - 15, 104, x + 15, 148), fill=who.ink)
    if mouth == "open":
        pen.ellipse((106, 172, 150, 222), fill=who.ink)
    elif mouth == "smile":
        pen.arc((78, 130, 178, 216), 25, 155, fill=who.ink, width=12)
    elif mouth == "sad":
        pen.arc((82, 184, 174, 264), 205, 335, fill=who.ink, width=12)
    else:
        pen.line((92, 196, 164, 196), fill=who.ink, width=12)
    side = round(scale * LARGE)
    head = head.rotate(tilt, Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (LARGE, LARGE), "white")
    canvas.alpha_composite(head, ((LARGE - side) // 2, (LARGE - side) // 2))
    return canvas.convert("RGB")


def _top(pen: ImageDraw.ImageDraw, who: Character) -> None:
    if who.top == "antennae":
        for x, end in ((92, 62), (164, 194)):
            pen.line((x, 70, end, 22), fill=tuple(channel * 2 // 3 for channel in who.skin), width=12)
            pen.ellipse((end - 18, 4, end + 18, 40), fill=who.tip)
        return
    for x in (54, 202):
        pen.ellipse((x - 42, 14, x + 42, 98), fill=who.skin)
        pen.ellipse((x - 22, 34, x + 22, 78), fill=who.tip)


def draw(who: Character, folder: Path) -> Path:
    """The four pictures, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, looks in enumerate(MOODS):
        portrait(who, *looks).save(folder / f"{who.name}_{number}.png")
    return folder
