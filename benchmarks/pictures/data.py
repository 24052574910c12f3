"""``python -m benchmarks.pictures.data``: installs the artwork by name, renders it, writes one file of pictures.

``pictures.safetensors``: ``pictures`` (N, 3, 64, 64) uint8 RGB on white, and a row of ``labels.Row`` for each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gcfg.nulltext.formats import checkpoint

from .labels import STYLES, Row

HERE = Path(__file__).parent
WORK = Path.home() / ".cache" / "gcfg" / "pictures"
SIZE = 64
GROUPS = {0: "smileys and emotion", 3: "animals and nature"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for artwork, training states and models")
    parser.add_argument("--modules", type=Path, help="a folder with node_modules that is installed already")
    settings = parser.parse_args()
    modules = settings.modules or install(settings.work)
    rows = table(modules / "node_modules")
    write(settings.work, rows, render(modules, [(row.pack, row.icon) for row in rows], settings.work))
    print(f"{len(rows)} pictures in {path(settings.work)}")


def path(work: Path) -> Path:
    return work / "pictures.safetensors"


def install(work: Path) -> Path:
    """The packages of ``package.json``, at the versions named there, in ``work``."""
    if not (npm := shutil.which("npm")):
        raise SystemExit("npm is needed to install the artwork (Debian: apt install npm); or name a folder that has "
                         "node_modules with --modules.")
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", work / "package.json")
    subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=work, check=True)
    return work


def table(node_modules: Path) -> list[Row]:
    """A row for every emoji of ``GROUPS`` and every pack that has it."""
    emoji = json.loads((node_modules / "emojibase-data/en/data.json").read_text("utf-8"))
    names = json.loads((node_modules / "emojibase-data/meta/groups.json").read_text("utf-8"))["subgroups"]
    icons = {pack: json.loads((node_modules / f"@iconify-json/{pack}/icons.json").read_text("utf-8"))["icons"]
             for pack in STYLES}
    return [Row(pack, icon, plain(entry["label"]), tuple(plain(tag) for tag in entry.get("tags", ())),
                names[str(entry["subgroup"])])
            for entry in emoji if entry.get("group") in GROUPS
            for pack in STYLES if (icon := icon_of(entry["label"])) in icons[pack]]


def icon_of(label: str) -> str:
    """The packs' name of an emoji: 'smiling face with heart-eyes' -> 'smiling-face-with-heart-eyes'."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['’]", "", label.lower())).strip("-")


def plain(text: str) -> str:
    """Lower case; letters, digits, spaces and hyphens only."""
    return re.sub(r"[^a-z0-9 -]+", " ", re.sub("['’]", "", text.lower())).strip()


def render(modules: Path, entries: list[tuple], work: Path) -> Tensor:
    """(N, 3, 64, 64) uint8, drawn by resvg: (pack, icon) or (pack, icon, change), see ``render.mjs``."""
    work.mkdir(parents=True, exist_ok=True)
    listing, out = work / "render.json", work / "render.bin"
    listing.write_text(json.dumps(entries), "utf-8")
    subprocess.run(["node", str(HERE / "render.mjs"), str(modules.resolve()), str(listing), str(out)], check=True)
    pixels = torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.uint8)
    listing.unlink()
    out.unlink()
    return pixels.view(len(entries), SIZE, SIZE, 3).permute(0, 3, 1, 2).contiguous()


def write(work: Path, rows: list[Row], pictures: Tensor) -> None:
    checkpoint.write(path(work), {"pictures": pictures},
                     {"rows": json.dumps([dataclasses.astuple(row) for row in rows])})


def load(work: Path) -> tuple[Tensor, list[Row]]:
    """Pictures (N, 3, 64, 64) in 0 .. 1 and their rows."""
    if not path(work).is_file():
        raise SystemExit(f"there are no pictures in '{work}': run python -m benchmarks.pictures.data first.")
    with safe_open(path(work), "pt") as file:
        rows = [Row(pack, icon, label, tuple(tags), subgroup)
                for pack, icon, label, tags, subgroup in json.loads(file.metadata()["rows"])]
        return file.get_tensor("pictures").float() / 255, rows


if __name__ == "__main__":
    main()
