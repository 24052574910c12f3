"""``python -m benchmarks.subjects.bleeding``: two characters in one picture, is each itself? Writes BLEEDING.md.

In a real ComfyUI in this process, by its own nodes and the pack's, on the small SD1.5 of ``benchmarks/pictures``. Every
picture is kept, so an interrupted run goes on; other weights make another folder. The base of pairs, the characters and
the critic are not shipped: train them first, as benchmarks/pictures/README.md says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import textwrap
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gcfg.nulltext.formats import checkpoint
from gcfg.terminal import ProgressBar

from ..pictures import data, expand, host, shipped
from ..pictures import pack as packing
from ..pictures.labels import CHARACTERS
from ..pictures.loop import averaged
from . import critic
from .bleeding_methods import METHODS, Pair, World, label

HERE = Path(__file__).parent
WORK = Path.home() / ".cache" / "gcfg" / "bleeding"
PAIRS: tuple[Pair, ...] = (("green_fox", "blue_cat"), ("orange_frog", "violet_tiger"), ("blue_cat", "pink_cat"),
                           ("violet_tiger", "green_fox"), ("pink_cat", "orange_frog"))
SEEDS, SHOWN = (1, 2, 3), (1, 2)
"""Of the figures, and of the sheet."""
TIMED = 4
"""Rounds of all methods in turn that are timed; the fastest run of each counts."""
EDGE = host.SIZE


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.subjects.bleeding", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK, help="the work folder of benchmarks.pictures")
    parser.add_argument("--pictures", type=Path, default=WORK, help="where every picture is kept")
    parser.add_argument("--comfyui", default="", help="found by itself where it can be")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    host.start(chosen.comfyui)
    narrow = pack(chosen.work, chosen.pictures / "narrow")
    folder = chosen.pictures / digest(narrow)
    expand.expand(folder / "models", narrow)
    world, eye = World.load(folder / "models"), critic.trained(chosen.work)
    shown = pictures(world, folder)
    results = measured(eye, shown)
    (chosen.out / "BLEEDING.md").write_text(report(results, cost(world, folder)), encoding="utf-8")
    sheet(shown).save(chosen.out / "bleeding.jpg", quality=90)
    print(f"{chosen.out / 'BLEEDING.md'} and bleeding.jpg written")


def pack(work: Path, folder: Path) -> Path:
    """The base of pairs and the characters' LoRAs in the form of the shipped family, in a folder."""
    tensors = {"base": packing.base(work, "pairs")} | {name: averaged(work / name) for name in CHARACTERS}
    for name, part in tensors.items():
        checkpoint.write(folder / f"{name}.safetensors", shipped.half(part),
                         {"credit": expand.CREDIT, "kind": f"narrow {name}, see shipped.py"})
    return folder


def digest(folder: Path) -> str:
    """Of the weights that draw and of the code that asks for pictures."""
    files = [*(folder / f"{name}.safetensors" for name in ("base", *CHARACTERS)), HERE / "bleeding_methods.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def pictures(world: World, folder: Path) -> dict[tuple, Tensor]:
    """Pictures (3, 64, W) in 0 .. 1 by ("alone", name, seed) and (method, pair, seed)."""
    wanted = {("alone", name, seed): lambda n=name, s=seed: world.alone(n, s) for name in CHARACTERS for seed in SEEDS}
    wanted |= {(method, pair, seed): lambda r=run, p=pair, s=seed: r(world, p, s)
               for seed in SEEDS for method, run in METHODS.items() for pair in PAIRS}
    wanted |= {("base", pair, seed): lambda p=pair, s=seed: world.base(p, s) for seed in SHOWN for pair in PAIRS}
    bar, found = ProgressBar("pictures"), {}
    for number, (key, draw) in enumerate(wanted.items(), 1):
        what = key[1] if isinstance(key[1], str) else "-".join(key[1])
        file = folder / key[0] / f"{what}_{key[2]}.png"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = (world.picture(draw()).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            part = file.with_suffix(".part")
            Image.fromarray(pixels).save(part, "png")
            part.rename(file)
        found[key] = torch.from_numpy(np.array(Image.open(file))).movedim(2, 0).float() / 255
        bar(number, len(wanted))
    return found


@torch.no_grad()
def measured(eye: critic.Critic, shown: dict[tuple, Tensor]) -> dict[str, list[dict]]:
    """For each method a row a pair: identity and leak of its characters, and the seam, means over the seeds."""
    def said(picture: Tensor) -> Tensor:
        return eye(picture[None]).softmax(1)[0]

    own = {name: statistics.mean(float(said(shown["alone", name, seed])[critic.NAMES.index(name)]) for seed in SEEDS)
           for name in CHARACTERS}
    results: dict[str, list[dict]] = {}
    for method in METHODS:
        for pair in PAIRS:
            rows = [one(said, own, pair, shown[method, pair, seed]) for seed in SEEDS]
            results.setdefault(method, []).append(
                {"pair": pair, **{key: statistics.mean(row[key] for row in rows) for key in rows[0]}})
    return results


def one(said, own: dict[str, float], pair: Pair, picture: Tensor) -> dict[str, float]:
    """Identity and leak against the characters' own runs, either way round where that fits better; the seam.

    Args:
        said: the critic's shares of a picture (3, 64, 64).
        own: of each character, in its own run.
        picture: (3, 64, 128).
    """
    halves = [said(picture[:, :, :EDGE]), said(picture[:, :, EDGE:])]
    index = [critic.NAMES.index(name) for name in pair]

    def read(sides: list[Tensor]) -> dict[str, float]:
        itself = [float(side[i]) / own[name] for side, i, name in zip(sides, index, pair, strict=True)]
        other = [float(side[i]) / own[name] for side, i, name in zip(sides, index[::-1], pair[::-1], strict=True)]
        return {"identity": statistics.mean(itself), "leak": statistics.mean(other)}

    ways = [read(halves), read(halves[::-1])]
    return {**max(ways, key=lambda row: row["identity"]), "seam": seam(picture)}


def seam(picture: Tensor) -> float:
    """The mean step between the two columns at the masks' edge, in units of that between any two columns."""
    steps = picture.diff(dim=2).abs().mean((0, 1))
    return float(steps[EDGE - 1] / steps.mean())


def cost(world: World, folder: Path) -> dict[str, float]:
    """Processor time of a picture of each method, in units of the base's under classifier-free guidance."""
    file = folder / "cost.json"
    if not file.is_file():
        runs = {"base": World.base, **METHODS}
        rounds = [{name: _seconds(run, world, 0) for name, run in runs.items()} for _ in range(TIMED)]
        times = {name: min(each[name] for each in rounds) for name in runs}
        file.write_text(json.dumps({name: value / times["base"] for name, value in times.items()}))
    return json.loads(file.read_text())


def _seconds(run, world: World, seed: int) -> float:
    start = time.process_time()
    run(world, PAIRS[0], seed)
    return time.process_time() - start


def report(results: dict[str, list[dict]], costs: dict[str, float]) -> str:
    """BLEEDING.md."""
    lines = (HERE / "bleeding.txt").read_text(encoding="utf-8").splitlines()
    lines += ["", "| | identity | leak | seam | cost |", "|---|---|---|---|---|"]
    for method, rows in results.items():
        mean = {key: statistics.mean(row[key] for row in rows) for key in ("identity", "leak", "seam")}
        lines.append(f"| {method} | {mean['identity']:.2f} | {mean['leak']:.2f} | {mean['seam']:.2f} | "
                     f"{costs[method]:.2f} |")
    lines += ["", "## Pair by pair: identity / leak", "",
              "| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for number, pair in enumerate(PAIRS):
        cells = [f"{rows[number]['identity']:.2f} / {rows[number]['leak']:.2f}" for rows in results.values()]
        lines.append(f"| {label(pair[0])}, {label(pair[1])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sheet(shown: dict[tuple, Tensor]) -> Image.Image:
    """Rows: a pair and a seed; columns: each character alone, the base, every method."""
    columns, gap, head = ["alone", "base", *METHODS], 6, 30
    rows = [(pair, seed) for pair in PAIRS for seed in SHOWN]
    wide, high = 2 * EDGE + gap, EDGE + gap
    canvas = Image.new("RGB", (len(columns) * wide + gap, len(rows) * high + head), "white")
    pen = ImageDraw.Draw(canvas)
    for c, column in enumerate(columns):
        pen.text((c * wide + gap, 2), textwrap.fill(column, 20), fill="black")
        for r, (pair, seed) in enumerate(rows):
            picture = (torch.cat([shown["alone", name, seed] for name in pair], 2) if column == "alone" else
                       shown[column, pair, seed])
            pixels = (picture.movedim(0, 2) * 255).round().to(torch.uint8).numpy()
            canvas.paste(Image.fromarray(pixels), (c * wide + gap, r * high + head))
    return canvas


if __name__ == "__main__":
    main()
