"""``python -m benchmarks.pictures.held_out``: does the base draw what it has never seen?

For pairs of a label and a style that training has never shown together, for labels that it has never shown at all, and
for pairs that it has shown: the share of pictures whose nearest head (of all 602, in pixels of a quarter of the size)
has the right label, and the right style.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from gcfg.miniature import recipes

from . import data, labels, shipped
from .labels import CONCEPT_STYLE, HELD_OUT_LABELS, HELD_OUT_PAIRS, STYLES, Row
from .measure import Narrow

SEEDS = range(4)
CFG = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--shipped", type=Path, default=shipped.MODELS)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    pictures, rows = data.load(settings.work)
    heads = [i for i, row in enumerate(rows) if row.head]
    family = Narrow.load(settings.shipped)
    for name, pairs in questions([rows[i] for i in heads]).items():
        label, style = nearest(family, pairs, pictures[heads], [rows[i] for i in heads])
        print(f"| {name} | {len(pairs)} | {label:.2f} | {style:.2f} |", flush=True)


def questions(rows: list[Row]) -> dict[str, list[tuple[str, str]]]:
    """(label, style) by what training has shown of them."""
    styles = [style for style in STYLES.values() if style != CONCEPT_STYLE]
    seen = [(rows[i].label, rows[i].style) for i in labels.base(rows)]
    return {"shown": seen[:: len(seen) // 18][:18], "the pair never shown": list(HELD_OUT_PAIRS),
            "the label never shown": [(label, style) for label in HELD_OUT_LABELS for style in styles]}


@torch.no_grad()
def nearest(family: Narrow, pairs: list[tuple[str, str]], heads: torch.Tensor, rows: list[Row]) -> tuple[float, float]:
    """The shares of right labels and of right styles among the nearest heads."""
    drawn = family.pictures(recipes.base_cfg(CFG), [f"{label} {style}" for label, style in pairs], SEEDS)
    flat = lambda pictures: F.avg_pool2d(pictures, 4).flatten(1)  # noqa: E731
    closest = torch.cdist(flat(drawn), flat(torch.cat([heads, heads.flip(3)]))).argmin(1) % len(heads)
    asked = [pair for pair in pairs for _ in SEEDS]
    right = [(rows[i].label == label, rows[i].style == style)
             for i, (label, style) in zip(closest.tolist(), asked, strict=True)]
    return sum(a for a, _ in right) / len(right), sum(b for _, b in right) / len(right)


if __name__ == "__main__":
    main()
