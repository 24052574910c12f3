"""A trace as a picture that can be read at the width of a node: size and angle of each guidance, and the cost."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from .trace import Reading, Trace, mean

BACKGROUND, PANEL, GRID, INK = "#1c1c1f", "#26262b", "#3d3d45", "#d9d9de"
COLOURS = ("#4fb3f6", "#ffb454", "#7fd77f", "#f4727f", "#c792ea", "#5ce0d2", "#f2e05c", "#f58ac8")
PASSES = ("run", "reused", "skipped")
WIDTH, HEIGHT, DPI = 8.0, 9.5, 100
FONT = 17.0
"""Points: a node shows the 800 pixels at about half their size."""
MOST_PAIRS = 6
LONGEST_NAME = 24


class MissingLibrary(RuntimeError):
    """matplotlib is not installed; the message says how to install it."""


def plot(trace: Trace) -> np.ndarray:
    """Draw a trace as an RGB picture (H, W, 3), uint8.

    Raises:
        MissingLibrary: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingLibrary("Drawing the plot needs matplotlib, which is not installed. Install it into the "
                             "Python that runs ComfyUI, with: pip install matplotlib") from error
    readings = trace.read()
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor=BACKGROUND, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    size, angle = figure.subplots(2, 1, sharex=True)
    _draw_sizes(size, trace.names, readings)
    _draw_cosines(angle, trace.names, readings)
    _over_progress(size, readings)
    angle.set_xlabel("sampling progress")
    for axes in (size, angle):
        _style(axes)
    figure.suptitle(summary(readings), color=INK, fontsize=FONT)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def summary(readings: list[Reading]) -> str:
    """The whole run in a few words: calls, predictions run, reused and skipped, mean time of each set of weights."""
    total = {kind: sum(getattr(r, kind) for r in readings) for kind in PASSES}
    models = dict.fromkeys(m for r in readings for m in r.milliseconds)
    times = [f"{_short(m)} {mean([r.milliseconds.get(m, math.nan) for r in readings]):.3g} ms" for m in models]
    counts = [f"{total['run']} predictions in {len(readings)} calls",
              *(f"{total[kind]} {kind}" for kind in PASSES[1:] if total[kind])]
    lines = [", ".join(counts), *(", ".join(times[i:i + 2]) for i in range(0, len(times), 2))]
    return "\n".join(lines)


def _draw_sizes(axes, names: list[str], readings: list[Reading]) -> None:
    for i, name in enumerate(names):
        _line(axes, readings, [r.sizes[i] for r in readings], _short(name), i)
    axes.set(ylabel="size / baseline's")
    axes.set_ylim(bottom=0.0)


def _draw_cosines(axes, names: list[str], readings: list[Reading]) -> None:
    curves = {(i, j): [r.cosines[i][j] for r in readings] for i, j in combinations(range(len(names)), 2)}
    known = [pair for pair, curve in curves.items() if not math.isnan(mean(curve))]
    shown = sorted(known, key=lambda pair: -abs(mean(curves[pair])))[:MOST_PAIRS]
    for k, (i, j) in enumerate(shown, start=len(COLOURS) // 2):  # other colours than the guidances themselves
        _line(axes, readings, curves[i, j], f"{_short(names[i])} / {_short(names[j])}", k)
    few = f", {len(shown)} of {len(known)} pairs" if len(shown) < len(known) else ""
    axes.set(ylabel=f"cosine{few}", ylim=(-1.05, 1.05))
    axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.5)
    if not shown:
        axes.text(0.5, 0.6, "no two guidances act together", color=INK, ha="center", fontsize=FONT,
                  transform=axes.transAxes)


def _line(axes, readings: list[Reading], values: list[float], label: str, number: int, **style) -> None:
    axes.plot([r.progress for r in readings], values, label=label, color=COLOURS[number % len(COLOURS)],
              linestyle=("-", "--")[number // len(COLOURS) % 2], marker="o", markersize=5, linewidth=2.6, **style)


def _over_progress(axes, readings: list[Reading]) -> None:
    """Progress along the axis, the noise levels at round progress above."""
    axes.set_xlim(-0.02, 1.02)
    levels = {r.progress: r.sigma for r in readings if r.sigma > 0}
    at = sorted(levels)
    ticks = [p / 5 for p in range(6) if at and at[0] - 0.02 <= p / 5 <= at[-1] + 0.02]
    sigmas = np.exp(np.interp(ticks, at, [math.log(levels[p]) for p in at])) if ticks else []
    above = axes.secondary_xaxis("top")
    above.set_xticks(ticks, [f"{s:.2g}" for s in sigmas])
    above.set_xlabel("noise level (sigma)", color=INK, fontsize=FONT)
    above.tick_params(colors=INK, labelsize=FONT)


def _style(axes) -> None:
    axes.set_facecolor(PANEL)
    axes.grid(color=GRID, linewidth=1.0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=FONT)
    axes.spines[:].set_color(GRID)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
        text.set_fontsize(FONT)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, facecolor=BACKGROUND, edgecolor=GRID, labelcolor=INK, fontsize=0.9 * FONT,
                    handlelength=1.2, labelspacing=0.25, framealpha=0.7)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME - 1]}…"
