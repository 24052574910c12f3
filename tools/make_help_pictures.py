#!/usr/bin/env python3
"""Draw the pictures of the help pages, twice the 302 pixels that their panel has.

    python tools/make_help_pictures.py

What nodes make is shown with the tiny models that come with the package: a base that knows colours, a concept of rings.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for gcfg, which needs no host

import torch
from matplotlib.figure import Figure
from PIL import Image

from gcfg.guidance import Prediction, Schedule
from gcfg.guidance.sheet import sheet
from gcfg.guidance.trace import Trace
from gcfg.guidance.trace_plot import BACKGROUND, COLOURS, GRID, INK, PANEL, plot
from gcfg.miniature import evaluate, recipes, sampling, store
from gcfg.miniature.pictures import RING, VIOLET, show

FOLDER = Path(__file__).resolve().parents[1] / "web" / "docs" / "pictures"
WIDTH, DPI, FONT = 6.04, 100, 16

BLUE, ORANGE, GREEN, RED = range(4)
ZERO = (0.0, 0.0)
# Of each preset its predictions (label, tail, head, colour, place of the label in points) and tail and head of D.
PRESETS = {
    "CFG": ([("D(c)", ZERO, (0.45, 0.3), BLUE, (-8, 12))], (ZERO, (1.35, 0.9))),
    "composable diffusion": ([("D(c)", ZERO, (0.75, 0.15), BLUE, (4, -4)),
                              ("D(c2)", ZERO, (0.2, 0.65), ORANGE, (-20, 6))],
                             (ZERO, (1.15, 0.8))),
    "Perp-Neg": ([("D(c)", ZERO, (0.85, 0.0), BLUE, (4, 4)), ("D(c2)", ZERO, (0.5, 0.55), RED, (-24, 6)),
                  ("n'", (0.5, 0.0), (0.5, 0.55), ORANGE, (5, -24))], (ZERO, (1.3, -0.55))),
    "AutoGuidance": ([("D(weak, c)", ZERO, (0.35, 0.5), ORANGE, (-50, 6)),
                      ("D(c)", ZERO, (0.8, 0.45), BLUE, (-16, -18))],
                     ((0.35, 0.5), (1.25, 0.4))),
    "concept-centric": ([("D(c)", ZERO, (0.6, 0.05), BLUE, (4, -4)), ("D(concept)", ZERO, (0.1, 0.6), GREEN, (-50, 6))],
                        (ZERO, (1.0, 0.95))),
    "concept across control": ([("D(c)", ZERO, (0.7, 0.0), BLUE, (4, -4)),
                                ("D(concept)", ZERO, (-0.3, 0.6), GREEN, (-22, 6)),
                                ("g'", ZERO, (0.0, 0.6), ORANGE, (5, -6))],
                               (ZERO, (1.1, 0.8))),
}


def schedules() -> Figure:
    """The kinds of schedule from 1 to 0.2."""
    figure, axes = _figure(3.4)
    progress = [k / 100 for k in range(101)]
    points = ((0.0, 0.2), (0.3, 1.0), (0.7, 1.0), (1.0, 0.2))
    kinds = {"constant": Schedule(), "linear": Schedule("linear", 1.0, 0.2), "cosine": Schedule("cosine", 1.0, 0.2),
             "power 3": Schedule("power", 1.0, 0.2, 3.0), "points": Schedule("points", points=points)}
    for colour, (name, schedule) in zip(COLOURS, kinds.items(), strict=False):
        axes.plot(progress, [schedule(p) for p in progress], label=name, color=colour, linewidth=3)
    axes.set_xlabel("sampling progress", color=INK, fontsize=FONT)
    axes.set_ylabel("factor on the scale", color=INK, fontsize=FONT)
    axes.set_ylim(0.0, 1.1)
    axes.legend(facecolor=BACKGROUND, edgecolor=GRID, labelcolor=INK, fontsize=0.75 * FONT, loc=(0.17, 0.02))
    return figure


def presets() -> Figure:
    """Where presets lead, as arrows from D_0: what is predicted, and D in white."""
    figure = Figure(figsize=(WIDTH, 7.6), dpi=DPI, facecolor=BACKGROUND, layout="constrained")
    for axes, (name, (vectors, (start, goal))) in zip(figure.subplots(3, 2).flat, PRESETS.items(), strict=True):
        axes.set(xlim=(-0.5, 1.6), ylim=(-0.75, 1.2), xticks=[], yticks=[], aspect="equal", facecolor=PANEL)
        axes.spines[:].set_color(GRID)
        axes.set_title(name, color=INK, fontsize=0.9 * FONT)
        _arrow(axes, start, goal, "white", dashed=True)
        for label, tail, head, colour, place in vectors:
            _arrow(axes, tail, head, COLOURS[colour])
            axes.annotate(label, head, xytext=place, textcoords="offset points", color=COLOURS[colour], fontsize=12)
        axes.annotate("D", goal, xytext=(3, -13), textcoords="offset points", color="white", fontsize=13)
        axes.annotate("D_0", (0, 0), xytext=(-30, -14), textcoords="offset points", color=INK, fontsize=12)
        axes.plot(0, 0, "o", color=INK)
    return figure


def trace() -> Image.Image:
    """The inspector's plot of a run in miniature: a concept and a control guidance."""
    models, _ = store.load_all()
    attributes = evaluate.requests(16, evaluate.SEEN, torch.Generator().manual_seed(0))
    captions, recipe = evaluate.captions(attributes, "colour"), recipes.gcfg(1.0, 4.0)
    record = Trace()
    record.begin(dict(enumerate(recipe.guidances)), sampling.PROGRESS, 3)

    def watch(x, sigma):
        found = sampling.predict(models, [Prediction(), *(g.prediction for g in recipe.guidances)], captions, x, sigma)
        base = found[recipe.baseline]
        added = {k: (g.scale, g.scale * (found[g.prediction] - base)) for k, g in enumerate(recipe.guidances)}
        record.record(sigma, base, added, run=3)
    noise = torch.randn((16, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    sampling.sample(models, recipe, captions, noise, steps=20, watch=watch)
    return Image.fromarray(plot(record))


def rings(models, concepts, controls, seeds, rows, columns) -> Image.Image:
    """Violet rings, which no concept picture shows, over scales and seeds; a scale of 0 leaves its guidance out."""
    cells = []
    for concept, control, seed in ((a, b, c) for a in concepts for b in controls for c in seeds):
        recipe = (recipes.base_cfg(control) if concept == 0 else recipes.concept_only() if control == 0 else
                  recipes.gcfg(concept, control))
        wanted = torch.tensor([[RING, VIOLET, 1]])
        cells.append(show(evaluate.pictures_for(models, recipe, wanted, "colour", seed)))
    pictures = torch.cat(cells).float().div(255).repeat_interleave(10, 1).repeat_interleave(10, 2)
    whole = sheet(pictures, rows, columns)[0]
    return Image.fromarray((whole * 255).round().byte().numpy())


def _figure(height: float):
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=BACKGROUND, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(PANEL)
    axes.grid(color=GRID)
    axes.tick_params(colors=INK, labelsize=FONT)
    axes.spines[:].set_color(GRID)
    return figure, axes


def _arrow(axes, tail, head, colour, dashed=False) -> None:
    axes.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2.5,
                                              "linestyle": "--" if dashed else "-", "shrinkA": 0, "shrinkB": 0})


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    schedules().savefig(FOLDER / "schedule.png")
    presets().savefig(FOLDER / "presets.png")
    trace().resize((604, 717), Image.Resampling.LANCZOS).save(FOLDER / "inspect.png", optimize=True)
    models, _ = store.load_all()
    rings(models, (0, 1.0, 1.5), (1.0, 2.0, 4.0), (3,), ["concept 0", "concept 1", "concept 1.5"],
          ["control 1", "control 2", "control 4"]).save(FOLDER / "scale_grid.jpg", quality=85)
    rings(models, (0, 0.5, 1.0), (4.0,), (1, 2, 3), ["Concept 0", "Concept 0.5", "Concept 1"],
          ["seed 1", "seed 2", "seed 3"]).save(FOLDER / "grid.jpg", quality=85)
    three = [rings(models, (a,), (b,), (3,), [""], [name])
             for name, a, b in (("base", 0, 4.0), ("concept", 1.0, 0), ("all", 1.0, 4.0))]
    view = Image.new("RGB", (sum(part.width for part in three), three[0].height))
    for k, part in enumerate(three):
        view.paste(part, (k * part.width, 0))
    view.save(FOLDER / "compare.jpg", quality=85)


if __name__ == "__main__":
    main()
