#!/usr/bin/env python3
"""Draw web/banner.png for the registry: the name, and what base, concept and GCFG make of one seed.

    python tools/make_banner.py out

``out`` is a folder of tools/try_in_comfyui.py, made with the small models that draw (benchmarks/pictures).
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE, CELL, GROUND, INK = (1260, 540), 300, "#1c1c1f", "#d9d9de"
BANNER = Path(__file__).resolve().parents[1] / "web" / "banner.png"
COMPARISON = "04 Compare Base and Concept.png"
PARTS = ("the base, with the prompt", "the concept, without words", "both: GCFG")


def banner(comparison: Image.Image) -> Image.Image:
    """The banner from the picture that GCFG Compare shows: three cells beside a margin, each as wide as it is high."""
    gap = 2
    side = (comparison.width - comparison.height) // 2 - gap  # a margin, three cells across, one down
    margin = comparison.height - side - gap
    whole = Image.new("RGB", SIZE, GROUND)
    draw = ImageDraw.Draw(whole)
    draw.text((60, 36), "GCFG Multi-Guidance", fill=INK, font=ImageFont.load_default(54))
    draw.text((62, 108), "several guidances, each with its own model, prompt and scale", fill=INK,
              font=ImageFont.load_default(26))
    for k, text in enumerate(PARTS):
        left = margin + k * (side + gap)
        cell = comparison.crop((left, margin, left + side, margin + side)).convert("RGB")
        x = 60 + k * (CELL + 120)
        whole.paste(cell.resize((CELL, CELL), Image.Resampling.BICUBIC), (x, 170))
        draw.text((x + CELL / 2, 500), text, fill=INK, font=ImageFont.load_default(24), anchor="mm")
        if k < 2:
            draw.text((x + CELL + 60, 320), "+="[k], fill=INK, font=ImageFont.load_default(60), anchor="mm")
    return whole


def main() -> None:
    with Image.open(Path(sys.argv[1]) / COMPARISON) as comparison:
        banner(comparison).save(BANNER, optimize=True)


if __name__ == "__main__":
    main()
