"""``python -m benchmarks.subjects``: both experiments over encoder seeds; writes RESULTS.md beside this file.

A seed that is done is kept in cache/, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from gcfg.terminal import ProgressBar

from .experiments import FORMS, subject, subjects
from .intervals import interval
from .world import pretrained

HERE = Path(__file__).parent
WEIGHTS = (0.0, 0.3, 1.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.subjects", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)), help="encoder seeds, 2 to 10")
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bar, results = ProgressBar("encoder seeds"), []
    for done, seed in enumerate(chosen.seeds, 1):
        results.append(measured(seed, chosen.cache))
        bar(done, len(chosen.seeds))
    chosen.out.write_text(report(results), encoding="utf-8")
    print(f"{chosen.out} written")


def measured(seed: int, cache: Path) -> dict:
    """All numbers of one encoder seed."""
    file = cache / f"seed_{seed}.json"
    if not file.exists():
        world, encoder = pretrained(seed)
        found = {"subjects": {form: subjects(world, encoder, form) for form in FORMS},
                 "subject": {str(weight): subject(world, encoder, weight) for weight in WEIGHTS}}
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def report(results: Sequence[dict]) -> str:
    """RESULTS.md."""
    count = len(results)
    lines = ["# Subjects in a toy with known answers", "",
             f"`python -m benchmarks.subjects`, {count} encoder seeds. Mean over the seeds; in brackets the 95 % "
             "interval of the paired difference from the first column (Student's t).", "",
             "## One subject: semantic preservation (ClassDiffusion), over its weight", ""]
    lines += table(results, "subject", [str(w) for w in WEIGHTS], "lambda ")
    lines += ["", "## Six confusable subjects, two words each (CLIF)", ""]
    lines += table(results, "subjects", FORMS, "")
    return "\n".join(lines) + "\n"


def table(results: Sequence[dict], part: str, columns: Sequence[str], prefix: str) -> list[str]:
    """A markdown table: a row a measure."""
    lines = ["| | " + " | ".join(prefix + c for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for measure in results[0][part][columns[0]]:
        first = [r[part][columns[0]][measure] for r in results]
        cells = [f"{statistics.mean(first):.3f}"]
        for column in columns[1:]:
            values = [r[part][column][measure] for r in results]
            low, high = interval([b - a for a, b in zip(first, values, strict=True)])
            cells.append(f"{statistics.mean(values):.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {measure} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
