"""``python -m benchmarks.subjects.choice``: the setting of masked guidances, chosen on pairs that are not measured.

Prints identity, leak and seam of each setting over three other pairs of the same characters, at other seeds, beside the
core's hooks on the same.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from gcfg.terminal import table

from ..pictures import data, expand, host
from ..pictures.labels import CHARACTERS
from . import bleeding, critic
from .bleeding_methods import SHARE, Pair, Setting, World

PAIRS: tuple[Pair, ...] = (("green_fox", "orange_frog"), ("violet_tiger", "blue_cat"), ("pink_cat", "green_fox"))
SEEDS = (11, 12)
SETTINGS = [*(Setting(feather, begin) for begin in (0.0, 0.1) for feather in (0.0, 16.0, 32.0)),
            *(Setting(begin=begin) for begin in (0.2, 0.3, 0.4)), Setting(begin=0.2, scale=2.5),
            Setting(begin=0.3, scale=2.5),
            *(Setting(begin=0.3, scale=scale, whole=True) for scale in (SHARE, 3.2))]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.subjects.choice", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK, help="the work folder of benchmarks.pictures")
    parser.add_argument("--pictures", type=Path, default=bleeding.WORK, help="where the models are written")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    host.start()
    narrow = bleeding.pack(chosen.work, chosen.pictures / "narrow")
    folder = chosen.pictures / "choice" / "models"
    expand.expand(folder, narrow)
    report(World.load(folder), critic.trained(chosen.work))


@torch.no_grad()
def report(world: World, eye: critic.Critic) -> None:
    def said(picture: torch.Tensor) -> torch.Tensor:
        return eye(picture[None]).softmax(1)[0]

    def picture(latent: dict) -> torch.Tensor:
        return world.picture(latent).movedim(2, 0).clamp(0, 1)

    own = {name: statistics.mean(float(said(picture(world.alone(name, seed)))[critic.NAMES.index(name)])
                                 for seed in SEEDS) for name in CHARACTERS}

    def row(name: str, draw: Callable[[Pair, int], dict]) -> list[str]:
        found = [bleeding.one(said, own, pair, picture(draw(pair, seed))) for pair in PAIRS for seed in SEEDS]
        means = [f"{statistics.mean(each[key] for each in found):.2f}" for key in ("identity", "leak", "seam")]
        print(name, *means, flush=True)
        return [name, *means]

    rows = [row("core's hooks, masks", world.hooks)]
    for setting in SETTINGS:
        name = (f"begin {setting.begin}, feather {setting.feather:g}, scale {setting.scale}"
                f"{', from the whole' * setting.whole}")
        rows.append(row(name, lambda pair, seed, setting=setting: world.masked(pair, seed, setting)))
    print(table(("", "identity", "leak", "seam"), rows))


if __name__ == "__main__":
    main()
