"""``python -m benchmarks.pictures.pack``: the averaged weights of the trained stages, packed small into ``models/``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from gcfg import comfyui
from gcfg.nulltext.formats import checkpoint
from gcfg.nulltext.formats.keymap import feature_key
from gcfg.training.run import state

from . import captions, data, labels, shipped
from .expand import CREDIT
from .judge import trained
from .loop import averaged
from .words import Table, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--out", type=Path, default=shipped.MODELS)
    parser.add_argument("--comfyui", default="", help="its tokenizer is used; found by itself where it can be")
    settings = parser.parse_args()
    comfyui.start(comfyui.find(settings.comfyui), cpu=True)
    for name, tensors in packed(settings.work).items():
        path = settings.out / f"{name}.safetensors"
        checkpoint.write(path, tensors, {"credit": CREDIT, "kind": f"narrow {name}, see shipped.py"})
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path}")
    _, rows = data.load(settings.work)
    table = Table.of(captions.every(rows), tokenizer())
    (settings.out / "words.json").write_text(json.dumps(table.pieces, separators=(",", ":")) + "\n", "utf-8")


def packed(work: Path) -> dict[str, dict[str, Tensor]]:
    """The files to write, by name; stages that are not trained yet are left out."""
    files = {"base": shipped.half(base(work))}
    weights = {name: value.float() for name, value in shipped.part(files["base"], "unet.").items()}
    if state.files(work / "fine_tune"):
        files["fine_tune"] = shipped.eighth(shipped.differences(weights, averaged(work / "fine_tune")))
    if state.files(work / "concept"):
        tuned = averaged(work / "concept") | constants(work)
        files["concept"] = shipped.eighth(shipped.differences(weights, tuned))
    if state.files(work / "control"):
        files["control"] = shipped.eighth(shipped.differences(weights, averaged(work / "control")))
    if state.files(work / "lora"):
        files["lora"] = shipped.half(averaged(work / "lora") | constants(work))
    if state.files(work / "trigger_lora"):
        files["trigger_lora"] = shipped.half(averaged(work / "trigger_lora"))
    if state.files(work / "judge"):
        files["judge"] = shipped.half(averaged(work / "judge")) | {"concept": concept_features(work)}
    return files


def base(work: Path, stage: str = "base") -> dict[str, Tensor]:
    """Text encoder, autoencoder and the UNet of a stage under their prefixes."""
    text = shipped.part(averaged(work / "words"), "text.")
    parts = {"unet.": averaged(work / stage), "vae.encoder.": shipped.part(averaged(work / "vae"), "encoder."),
             "vae.decoder.": averaged(work / "decoder"), "text.": text | {"tokens": tokens(work)}}
    return {prefix + name: value for prefix, tensors in parts.items() for name, value in tensors.items()}


def tokens(work: Path) -> Tensor:
    return torch.load(work / "words" / "tokens.pt", weights_only=True)


def concept_features(work: Path) -> Tensor:
    """The judge's features of the concept's pictures and of these flipped, (152, 24): what distances are from."""
    pictures, rows = data.load(work)
    shown = pictures[labels.concept(rows)]
    return trained(work)(torch.cat([shown, shown.flip(3)]))[0]


def constants(work: Path) -> dict[str, Tensor]:
    """The null-text features that the concept was trained with, by their keys."""
    found = torch.load(work / "concept" / "features.pt", weights_only=True)
    return {feature_key(block): value for block, value in found.items()}


if __name__ == "__main__":
    main()
