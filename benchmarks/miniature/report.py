"""RESULTS.md: tables of what the experiment measured, as mean and spread over the training seeds."""

from __future__ import annotations

from pathlib import Path

from gcfg.miniature.evaluate import SEEN, UNSEEN
from gcfg.miniature.metrics import mean_and_spread

from .diagnosis import mean_over_seeds
from .methods import Method, comparison, further, remedies

HEAD = ("| method | scale | prompt | FD | colour | look | FD to violet | violet | violet and look |",
        "|---|---|---|---|---|---|---|---|---|")
COLUMNS = ((SEEN, "distance"), (SEEN, "colour"), (SEEN, "look"),
           (UNSEEN, "distance"), (UNSEEN, "colour"), (UNSEEN, "both"))


def values(results: list[dict], method: Method, samples: int, kind: str, what: str) -> list[float]:
    """One number of a method, a value a training seed."""
    return [result[f"{method.key}, {samples}"][kind][what] for result in results]


def cell(numbers: list[float], digits: int) -> str:
    mean, spread = mean_and_spread(numbers)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def comparison_table(results: list[dict], methods: list[Method], samples: int) -> list[str]:
    """Methods as a Markdown table."""
    floor = " | ".join((f"{results[0]['floor'][SEEN]:.2f}", "", "", f"{results[0]['floor'][UNSEEN]:.2f}", "", ""))
    lines = [*HEAD, f"| *real against real (floor)* | | | {floor} |"]
    for method in methods:
        cells = [cell(values(results, method, samples, *column), 2) for column in COLUMNS]
        lines.append(f"| {' | '.join([method.family, method.scale, method.prompt, *cells])} |")
    return lines


def noise_table(entries: list[dict[str, float]]) -> list[str]:
    """Numbers per noise level as a Markdown table; the columns are the keys."""
    names = list(entries[0])
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|" + "---|" * len(names)]
    return [*lines, *(f"| {' | '.join(f'{entry[name]:.2f}' for name in names)} |" for entry in entries)]


def seeds_and_samples(results: list[dict], samples: int) -> str:
    """The line above a table."""
    return (f"{len(results)} training seeds, {samples} samples a method, request kind and seed; mean ± standard "
            "deviation over the seeds.")


def write(results: list[dict], samples: int, path: Path) -> None:
    """Write RESULTS.md: the fixed text of ``findings.md`` first, then every table."""
    diagnosis = {kind: mean_over_seeds([result["diagnosis"][kind] for result in results])
                 for kind in (SEEN, UNSEEN, "drift")}
    parts = [
        (Path(__file__).parent / "findings.md").read_text().rstrip(),
        "## All methods",
        seeds_and_samples(results, samples),
        "\n".join(comparison_table(results, comparison(), samples)),
        "## Remedies for the unseen colour",
        "The same numbers; concept scale 1 throughout, the scale is that of the control guidance.",
        "\n".join(comparison_table(results, remedies(), samples)),
        "## The whole caption, and a balanced concept",
        seeds_and_samples(results, samples) + " What is balanced has the given share of the control guidance's length "
        "at every step.",
        "\n".join(comparison_table(results, further(), samples)),
        "## Guidance over the noise levels of a GCFG run (concept 1, control 2)",
        "Lengths over that of the baseline's prediction; the last two columns say how often the concept's and the "
        "base's prediction show the requested colour.",
        "Requested colours that the concept has:", "\n".join(noise_table(diagnosis[SEEN])),
        "Violet:", "\n".join(noise_table(diagnosis[UNSEEN])),
        "![Guidance over noise levels](noise_levels.png)",
        "## Unconditional guidance drift of the captioned fine-tune",
        "In lengths of the base's own classifier-free direction at the same point: how far the tuned unconditional "
        "prediction moved, and how long the tuned model's own direction is.",
        "\n".join(noise_table(diagnosis["drift"])),
    ]
    path.write_text("\n\n".join(parts) + "\n")
