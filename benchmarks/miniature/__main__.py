"""``python -m benchmarks.miniature``: the whole comparison; writes RESULTS.md and the plot beside this file."""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from gcfg.miniature import make
from gcfg.terminal import ProgressBar

from . import experiment, plot, report

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.miniature", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--samples", type=int, default=1000, help="pictures a method and kind of request")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, a thread each")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="trained models and scores, to resume from")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of RESULTS.md and front.png")
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    start = time.monotonic()
    make.classifier(chosen.cache, ProgressBar)
    count = len(chosen.seeds)
    with ProcessPoolExecutor(min(chosen.jobs, count), mp_context=get_context("spawn")) as pool:
        files = list(pool.map(experiment.run_seed, [chosen.cache] * count, chosen.seeds, [chosen.samples] * count))
    results = [json.loads(file.read_text()) for file in files]
    plot.front(results, chosen.samples, chosen.out / "front.png")
    plot.noise_levels(results, chosen.out / "noise_levels.png")
    report.write(results, chosen.samples, chosen.out / "RESULTS.md")
    print(f"{chosen.out / 'RESULTS.md'} written; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
