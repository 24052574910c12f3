"""The narrow weights as they lie in ``models/``: packed small, and read back.

``base.safetensors`` holds the text encoder, the autoencoder and the UNet in float16. The others are differences from
that UNet in 8 bits, one scale for each output channel; null-text features and low-rank pairs are float16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gcfg.nulltext.attention import FEATURE
from gcfg.nulltext.formats import checkpoint

from .words import Table

MODELS = Path(__file__).parent / "models"


def read(name: str, folder: Path = MODELS) -> dict[str, Tensor]:
    """The tensors of one shipped file in float32 (token ids in int64), differences still differences."""
    if not (path := folder / f"{name}.safetensors").is_file():
        raise FileNotFoundError(f"the shipped weights '{path}' are missing; get the repository anew, or train them as "
                                "benchmarks/pictures/README.md says.")
    packed, _ = checkpoint.read(path)
    return unpack(packed)


def unet(name: str, folder: Path = MODELS) -> dict[str, Tensor]:
    """The weights of a narrow UNet: base, fine_tune or concept (which has features in place of its cross-attention).

    Or of the ControlNet, control, whose way down began as the base's.
    """
    base = part(read("base", folder), "unet.")
    if name == "base":
        return base
    return restored(base, read(name, folder))


def words(folder: Path = MODELS) -> Table:
    """The tokenizer of the training captions' words."""
    return Table(json.loads((folder / "words.json").read_text("utf-8")))


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def differences(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is to be added to the base; as it is what the base does not have."""
    return {key: value - base[key] if key in base else value for key, value in tuned.items()}


def restored(base: Mapping[str, Tensor], deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: base[key] + value if key in base else value for key, value in deltas.items()}


def half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float16, token ids in int32."""
    return {key: value.half() if value.is_floating_point() else value.int() for key, value in tensors.items()}


def eighth(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in 8 bits with a scale for each output channel, the rest in float16."""
    packed = {}
    for key, value in tensors.items():
        if value.ndim < 2 or key.endswith(FEATURE):
            packed[key] = value.half()
            continue
        scale = value.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        packed[key] = (value / scale.view(-1, *(1,) * (value.ndim - 1))).round().to(torch.int8)
        packed[f"{key}:scale"] = scale
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``half`` and ``eighth``."""
    found = {}
    for key, value in packed.items():
        if key.endswith(":scale"):
            continue
        if value.dtype == torch.int8:
            found[key] = value.float() * packed[f"{key}:scale"].view(-1, *(1,) * (value.ndim - 1))
        else:
            found[key] = value.float() if value.is_floating_point() else value.long()
    return found
