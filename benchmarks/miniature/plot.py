"""The plots: fidelity against control for every method, and guidance over noise levels."""

from __future__ import annotations

from pathlib import Path

from gcfg.miniature.evaluate import SEEN, UNSEEN
from gcfg.miniature.metrics import mean_and_spread

from .diagnosis import mean_over_seeds
from .methods import Method, comparison, remedies
from .report import values

STYLES = {
    "base, CFG": ("0.45", "s"), "concept alone": ("0.45", "*"), "tuned, own CFG": ("black", "o"),
    "tuned, base null": ("tab:blue", "D"), "control of the tuned model": ("tab:cyan", "D"),
    "GCFG, concept 1": ("tab:red", "o"), "GCFG, concept 1.5": ("tab:orange", "o"),
    "norm limit 0.4 on the concept": ("tab:pink", "v"), "concept from 10 % on": ("tab:pink", "<"),
    "control rises by 20 %": ("tab:pink", "^"), "control from the class": ("tab:brown", "P"),
    "concept across control": ("tab:green", "X"), "across control, from the class": ("darkgreen", "X"),
}
"""Colour and marker by family; a prompt with the full caption is dashed."""


def curves() -> dict[tuple[str, str], list[Method]]:
    """Methods by family and prompt, in the order of their scales."""
    families: dict[tuple[str, str], list[Method]] = {}
    for method in (*comparison(), *remedies()):
        families.setdefault((method.family, method.prompt), []).append(method)
    return families


def front(results: list[dict], samples: int, path: Path) -> None:
    """Frechet distance over lost control for seen and unseen colours; error bars are spreads over training seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_front(left, results, samples, SEEN)
    draw_front(right, results, samples, UNSEEN)
    left.set(title="requested: colours that the concept has", ylabel="Frechet distance to the concept")
    right.set(title="requested: violet, which the concept never has",
              ylabel="Frechet distance to the concept in violet")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
    figure.savefig(path, dpi=110)


def draw_front(axis, results: list[dict], samples: int, kind: str) -> None:
    """One panel: a curve a family, the scale of the (control) guidance beside each point; lower left is better."""
    from matplotlib.colors import to_rgba

    least, leftmost = 0.5 / samples, 1.0  # the least share stands for "none" on the logarithmic axis
    for (family, prompt), methods in curves().items():
        colour, marker = STYLES[family]
        missed = [mean_and_spread(values(results, m, samples, kind, "both")) for m in methods]
        x = [max(1.0 - share, least) for share, _ in missed]
        distance = [mean_and_spread(values(results, m, samples, kind, "distance")) for m in methods]
        y = [mean for mean, _ in distance]
        bars = {"xerr": [[min(s, v - least) for v, (_, s) in zip(x, missed, strict=True)], [s for _, s in missed]],
                "yerr": [[min(s, 0.6 * v) for v, s in distance], [s for _, s in distance]]}
        axis.errorbar(x, y, **bars, color=colour, marker=marker, markersize=7, capsize=2, elinewidth=0.8, linewidth=1.3,
                      linestyle="--" if prompt == "caption" else "-", ecolor=to_rgba(colour, 0.4),
                      label=f"{family} ({prompt})")
        leftmost = min(leftmost, *x)
        for method, px, py in zip(methods, x, y, strict=True):
            axis.annotate(method.scale, (px, py), textcoords="offset points", xytext=(6, 5), fontsize=8, color=colour)
    axis.set(xscale="log", yscale="log", xlim=(0.8 * leftmost, 1.4),
             xlabel="share of samples without the requested colour or without the concept's look")
    axis.text(0.02, 0.02, f"lower left is better; real against real: {results[0]['floor'][kind]:.1f}", fontsize=9,
              color="0.3", transform=axis.transAxes)
    axis.grid(alpha=0.25)


def noise_levels(results: list[dict], path: Path) -> None:
    """Lengths and cosine of the guidances, and the share of predictions in the requested colour, over noise levels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    lengths, angle, colour = figure.subplots(1, 3)
    for kind, style in ((SEEN, "-"), (UNSEEN, "--")):
        entries = mean_over_seeds([result["diagnosis"][kind] for result in results])
        sigma = [entry["sigma"] for entry in entries]
        for axis, names in ((lengths, ("concept", "control")), (angle, ("cosine",)),
                            (colour, ("concept_colour", "base_colour"))):
            for i, name in enumerate(names):
                axis.plot(sigma, [entry[name] for entry in entries], style, color=f"C{i}", marker=".",
                          label=f"{name.replace('_', ' ')}, {kind}")
    lengths.set(title="length of the guidance / length of D_0", yscale="log")
    angle.set(title="cosine of concept and control guidance")
    colour.set(title="predictions in the requested colour")
    for axis in (lengths, angle, colour):
        axis.set(xscale="log", xlabel="noise level sigma")
        axis.invert_xaxis()
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
