"""What the studies on the small bases share: what is done is kept on disk, pictures are drawn of texts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from gcfg.guidance import Recipe

from ..pictures import data
from . import looks
from .narrow import Family

SCALE, CLASS = 4.0, "face"


def settings(name: str, doc: str, out: Path) -> argparse.Namespace:
    """The settings of a study's command, which runs in one thread.

    Args:
        name: of its module.
        out: where it writes its pictures if not told.
    """
    parser = argparse.ArgumentParser(f"python -m {name}", description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK, help="the work folder of benchmarks.pictures")
    parser.add_argument("--out", type=Path, default=out)
    torch.set_num_threads(1)
    return parser.parse_args()


class Study:
    """Runs of training and what their pictures show; figures and pictures to look at are kept in a folder.

    Args:
        work: the work folder of benchmarks.pictures.
        stage: of the base.
        name: of the folder in it, or another folder.
    """

    def __init__(self, work: Path, stage: str, name: str | Path):
        self.family, self.eye = Family(work / stage / "models"), looks.trained(work)
        self.work, self.folder = work, work / name
        self.folder.mkdir(exist_ok=True)

    def kept(self, name: str, make: Callable[[], dict]) -> dict:
        """The figures of that name, made where they are not on disk."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            path.write_text(json.dumps(make()), "utf-8")
            print(name, path.read_text("utf-8"), flush=True)
        return json.loads(path.read_text("utf-8"))

    def drawn(self, models: Mapping[str, nn.Module], recipe: Recipe, texts: Mapping[str, Sequence[str]],
              rows: Sequence[Tensor], seeds: range, wide: bool = False) -> Tensor:
        """Pictures of texts by the recipe's conditionings, "unconditional" being the empty one; ``Family.pictures``."""
        with torch.no_grad():
            features = {name: self.family.read(listed, rows)[0] for name, listed in texts.items()}
            features["unconditional"] = self.family.read([""])[0]
        return self.family.pictures(models, recipe, features, seeds, wide)

    def keep(self, name: str, pictures: Tensor) -> None:
        """A strip of pictures."""
        rows = (pictures.movedim(1, 3) * 255).round().byte().numpy()
        strip = Image.new("RGB", (sum(row.shape[1] for row in rows), 64), "white")
        for k, row in enumerate(rows):
            strip.paste(Image.fromarray(row), (k * row.shape[1], 0))
        strip.save(self.folder / f"{name}.png")

    def sheet(self, names: Sequence[str]) -> Image.Image:
        """The kept strips under their names, twice their size."""
        strips = [Image.open(self.folder / f"{name}.png") for name in names]
        canvas = Image.new("RGB", (2 * max(strip.width for strip in strips), 146 * len(strips)), "white")
        for k, (name, strip) in enumerate(zip(names, strips, strict=True)):
            ImageDraw.Draw(canvas).text((4, 146 * k + 3), name, fill="black")
            canvas.paste(strip.resize((2 * strip.width, 128), Image.Resampling.LANCZOS), (0, 146 * k + 18))
        return canvas
