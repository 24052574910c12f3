"""``python -m benchmarks.pictures.sheet``: the headline picture, by the stock KSampler and KSampler (GCFG) of ComfyUI.

A row for each prompt, the same seeds in each column. The concept is run as it is, at cfg 1.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from . import host, shipped
from .expand import expand
from .measure import CHOSEN

PROMPTS = ("smiling face with sunglasses", "loudly crying face", "smiling face with halo", "cowboy hat face")
SEEDS = (1, 2, 3)
ZOOM, GAP, LABEL = 2, 28, 30
COLUMNS = ("base", "fine-tuned, with captions", "fine-tuned, without captions: the concept", "GCFG: base + concept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a .png")
    parser.add_argument("--shipped", type=Path, default=shipped.MODELS)
    parser.add_argument("--comfyui", default="")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--cfg", type=float, default=4.0, help="of the stock KSampler, base and fine-tune")
    parser.add_argument("--scales", type=float, nargs=2, default=CHOSEN, help="concept_scale and control_scale")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    host.start(settings.comfyui)
    with tempfile.TemporaryDirectory() as folder:
        expand(Path(folder), settings.shipped)
        family = host.Family.load(Path(folder))
        rows = [columns(family, prompt, settings) for prompt in settings.prompts]
    compose(rows, settings.prompts).save(settings.out)


def columns(family: host.Family, prompt: str, settings: argparse.Namespace) -> list[list[Tensor]]:
    """The pictures of one prompt, a list of seeds for each column."""
    seeds, (concept, control) = settings.seeds, settings.scales
    return [[family.stock(family.base, prompt, seed, settings.cfg) for seed in seeds],
            [family.stock(family.fine_tune, prompt, seed, settings.cfg) for seed in seeds],
            [family.stock(family.concept, prompt, seed, 1.0) for seed in seeds],
            [family.gcfg(family.concept, prompt, seed, concept, control) for seed in seeds]]


def compose(rows: list[list[list[Tensor]]], prompts: list[str]) -> Image.Image:
    """Pictures (64, 64, 3) in 0 .. 1 on one sheet with its labels."""
    side = host.SIZE * ZOOM
    width = len(rows[0][0]) * side
    sheet = Image.new("RGB", (len(COLUMNS) * (width + GAP) - GAP, LABEL + len(rows) * (side + LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for c, name in enumerate(COLUMNS):
        draw.text((c * (width + GAP) + 4, 4), name, "black", font)
    for r, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        top = LABEL + r * (side + LABEL)
        for c, pictures in enumerate(row):
            for p, picture in enumerate(pictures):
                image = Image.fromarray((picture * 255).round().byte().numpy())
                sheet.paste(image.resize((side, side), Image.BICUBIC), (c * (width + GAP) + p * side, top))
        draw.text((4, top + side + 2), f"prompt: {prompt}", "#555555", font)
    return sheet


if __name__ == "__main__":
    main()
