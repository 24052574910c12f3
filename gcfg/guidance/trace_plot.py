"""A trace as a picture: size, angle and scale of each guidance over sampling progress, and the forward passes."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from .trace import Reading, Trace, mean

BACKGROUND, PANEL, GRID, INK = "#1c1c1f", "#26262b", "#3d3d45", "#d9d9de"
COLOURS = ("#4fb3f6", "#ffb454", "#7fd77f", "#f4727f", "#c792ea", "#5ce0d2", "#f2e05c", "#f58ac8")
PASSES = (("run", "#c3cbd8"), ("reused", "#75839a"), ("skipped", "#3f3f48"))
WIDTH, HEIGHT, DPI = 12.0, 9.0, 110
MOST_PAIRS = 8


def plot(trace: Trace) -> np.ndarray:
    """Draw a trace as an RGB picture (H, W, 3), uint8.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("Drawing the plot needs matplotlib, which is not installed. Install it into the Python "
                           "that runs ComfyUI, with: pip install matplotlib") from error
    readings = trace.read()
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor=BACKGROUND, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    (size, angle), (scale, passes) = figure.subplots(2, 2)
    _draw_sizes(size, trace.names, readings)
    _draw_cosines(angle, trace.names, readings)
    _draw_scales(scale, trace.names, readings)
    _draw_passes(passes, readings)
    for axes in (size, angle, scale):
        _over_progress(axes, readings, noise=axes is not scale)
    for axes in (size, angle, scale, passes):
        _style(axes)
    figure.suptitle(summary(readings), color=INK, fontsize=12)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def summary(readings: list[Reading]) -> str:
    """The whole run in a line: calls, predictions run, reused and skipped, mean time of each set of weights."""
    total = {kind: sum(getattr(r, kind) for r in readings) for kind, _ in PASSES}
    models = dict.fromkeys(m for r in readings for m in r.milliseconds)
    times = [f"{m} {mean([r.milliseconds.get(m, math.nan) for r in readings]):.3g} ms" for m in models]
    counts = f"{len(readings)} model calls: {total['run']} predictions run, {total['reused']} reused, " \
             f"{total['skipped']} skipped"
    return counts + ("\nmean time of a call: " + ", ".join(times) if times else "")


def _draw_sizes(axes, names: list[str], readings: list[Reading]) -> None:
    for i, name in enumerate(names):
        _line(axes, readings, [r.sizes[i] for r in readings], name, i)
    axes.set(title="Size of each guidance", ylabel="RMS relative to the baseline")
    axes.set_ylim(bottom=0.0)


def _draw_cosines(axes, names: list[str], readings: list[Reading]) -> None:
    curves = {(i, j): [r.cosines[i][j] for r in readings] for i, j in combinations(range(len(names)), 2)}
    known = [pair for pair, curve in curves.items() if not math.isnan(mean(curve))]
    shown = sorted(known, key=lambda pair: -abs(mean(curves[pair])))[:MOST_PAIRS]
    for k, (i, j) in enumerate(shown, start=len(COLOURS) // 2):  # other colours than the guidances themselves
        _line(axes, readings, curves[i, j], f"{names[i]} / {names[j]}", k)
    few = f" ({len(shown)} strongest of {len(known)} pairs)" if len(shown) < len(known) else ""
    axes.set(title=f"Angle between the guidances{few}", ylabel="cosine", ylim=(-1.05, 1.05))
    axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.5)
    if not shown:
        axes.text(0.5, 0.6, "no two guidances act together", color=INK, ha="center", transform=axes.transAxes)


def _draw_scales(axes, names: list[str], readings: list[Reading]) -> None:
    for i, name in enumerate(names):
        _line(axes, readings, [r.scales[i] for r in readings], name, i, drawstyle="steps-mid")
    axes.set(title="Scale of each guidance (0 outside its window)", ylabel="scale")
    axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.5)


def _draw_passes(axes, readings: list[Reading]) -> None:
    calls, bottom = np.arange(1, len(readings) + 1), np.zeros(len(readings))
    for kind, colour in PASSES:
        counts = np.array([getattr(r, kind) for r in readings])
        axes.bar(calls, counts, bottom=bottom, color=colour, label=kind, width=0.85)
        bottom += counts
    axes.set(title="Predictions of each model call", ylabel="predictions", xlabel="model call",
             xlim=(0.4, len(readings) + 0.6), ylim=(0, max(bottom, default=1) * 1.25))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _line(axes, readings: list[Reading], values: list[float], label: str, number: int, **style) -> None:
    axes.plot([r.progress for r in readings], values, label=label, color=COLOURS[number % len(COLOURS)],
              linestyle=("-", "--")[number // len(COLOURS) % 2], marker="o", markersize=4, linewidth=2.0, **style)


def _over_progress(axes, readings: list[Reading], noise: bool) -> None:
    """Progress below, the noise levels at round progress above."""
    axes.set(xlabel="sampling progress", xlim=(-0.02, 1.02))
    if not noise:
        return
    levels = {r.progress: r.sigma for r in readings if r.sigma > 0}
    at = sorted(levels)
    ticks = [p / 5 for p in range(6) if at and at[0] - 0.02 <= p / 5 <= at[-1] + 0.02]
    sigmas = np.exp(np.interp(ticks, at, [math.log(levels[p]) for p in at])) if ticks else []
    above = axes.secondary_xaxis("top")
    above.set_xticks(ticks, [f"{s:.3g}" for s in sigmas])
    above.set_xlabel("noise level (sigma)", color=INK)
    above.tick_params(colors=INK)


def _style(axes) -> None:
    axes.set_facecolor(PANEL)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
    axes.spines[:].set_color(GRID)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
    axes.title.set_fontsize(13)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, facecolor=BACKGROUND, edgecolor=GRID, labelcolor=INK, fontsize=10,
                    ncols=3 if labels[0] == "run" else 1)
