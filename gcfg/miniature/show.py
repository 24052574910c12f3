"""The demo's comparison: a table of scores and a picture with a row of rings for each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..guidance import Recipe, plan
from . import recipes
from .evaluate import SEEN, UNSEEN, Score, pictures_for, reference, requests, score
from .metrics import Classifier
from .pictures import COLOURS, PLACES, RING, show
from .sampling import PROGRESS, Model, sigma_at

HEAD = ("method", "captions", "Frechet", "colour", "look", "violet", "violet look", "models/step")
LEGEND = """
captions     whether the concept's model was trained with a caption for every picture
Frechet      distance to real concept pictures in a classifier's features; lower is better
colour       share of samples in the requested colour (one that the concept pictures have)
look         share of samples that are rings with the concept's look
violet       share in violet, which no concept picture has; 'violet look': with the concept's look at once
models/step  predictions that a sampling step evaluates"""
EQUAL, NEAR = 0.03, 0.15
"""Differences of two shares that count as equal and as near."""
WITH, WITHOUT = "with captions", "without captions"


@dataclass(frozen=True)
class Row:
    """A method's scores for seen and unseen colours and its pictures, two of each colour."""

    name: str
    captions: str
    seen: Score
    unseen: Score
    evaluations: int
    pictures: Tensor

    def cells(self) -> tuple[str, ...]:
        seen, unseen = self.seen, self.unseen
        shares = (seen.colour, seen.look, unseen.colour, unseen.both)
        return (self.name, self.captions, f"{seen.distance:.2f}", *(f"{share:.0%}" for share in shares),
                str(self.evaluations))


def methods() -> dict[tuple[str, str], Recipe]:
    """The compared recipes by name, and how the concept's model was trained."""
    return {("base alone, CFG 2", "-"): recipes.base_cfg(2.0),
            ("fine-tune, CFG 2", WITH): recipes.tuned_cfg(2.0),
            ("concept alone", WITHOUT): recipes.concept_only(),
            ("GCFG 1, 2", WITHOUT): recipes.gcfg(1.0, 2.0),
            ("GCFG 1, 2 across control", WITHOUT): recipes.across_control(2.0)}


def conclusion(rows: list[Row]) -> str:
    """What the table says, in two sentences that follow from its numbers."""
    _, tuned, _, plain, across = (row for row in rows)
    gains = {"look": plain.seen.look - tuned.seen.look, "requested colour": plain.seen.colour - tuned.seen.colour}
    unseen = {"look": across.unseen.both - tuned.unseen.both}
    return (f"Without a single caption GCFG {_against(gains)} the fine-tune that had one for every picture: the look "
            f"in {plain.seen.look:.0%} of the samples (fine-tune {tuned.seen.look:.0%}), the requested colour in "
            f"{plain.seen.colour:.0%} ({tuned.seen.colour:.0%}), at a distance of {plain.seen.distance:.0f} "
            f"({tuned.seen.distance:.0f}). In the colour that the concept has never had it {_against(unseen)} it once "
            f"projected across the control: {across.unseen.both:.0%} ({tuned.unseen.both:.0%}).")


def _against(gains: Mapping[str, float]) -> str:
    """How a method stands beside another by its worst gain in a share."""
    worst, name = min((gain, name) for name, gain in gains.items())
    if worst > EQUAL:
        return "beats"
    if worst >= -EQUAL:
        return "equals"
    return "comes near" if worst >= -NEAR else f"falls behind, most in the {name},"


def compare(models: Mapping[str, Model], classifier: Classifier, count: int, seed: int,
            progress: Callable[[int, int], None]) -> list[Row]:
    """Every method, from the same noise."""
    goal = reference(classifier, 4000, count)
    generator = torch.Generator().manual_seed(seed)
    asked = {kind: requests(count, kind, generator) for kind in (SEEN, UNSEEN)}
    ten = torch.tensor([[RING, i // 2, len(PLACES) // 2] for i in range(2 * len(COLOURS))])

    rows = []
    for i, ((name, captions), recipe) in enumerate(methods().items()):
        got = {kind: score(pictures_for(models, recipe, asked[kind], "colour", seed), asked[kind], kind, goal)
               for kind in asked}
        pictures = pictures_for(models, recipe, ten, "colour", seed + 1)
        rows.append(Row(name, captions, got[SEEN], got[UNSEEN], evaluations(recipe), pictures))
        progress(i + 1, len(methods()))
    return rows


def evaluations(recipe: Recipe) -> int:
    """Model evaluations of a step in which every guidance counts."""
    return len(plan(recipe, sigma_at(0.5), PROGRESS).all_predictions)


def draw_grid(rows: list[Row], path: Path) -> None:
    """Write the picture: a row a method, two columns a colour. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib; install it with: pip install matplotlib") from error
    columns = 2 * len(COLOURS)
    figure = Figure(figsize=(0.62 * columns + 3.4, 0.62 * len(rows) + 0.9), facecolor="white", layout="constrained")
    axes = figure.subplots(len(rows), columns)
    for row, line in zip(rows, axes, strict=True):
        for axis, picture in zip(line, show(row.pictures), strict=True):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        label = f"{row.name}\n{row.captions}".removesuffix("\n-")
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    for i, colour in enumerate(COLOURS):
        axes[0, 2 * i].set_title(f"{colour}{' (unseen)' if colour == 'violet' else ''}", fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
