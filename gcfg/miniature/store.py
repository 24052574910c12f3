"""The tiny models as safetensors files, stored in float16 and computed in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..files import write_tensors
from ..nulltext.attention import cross_attention_blocks, replace_cross_attention
from .metrics import Classifier
from .model import Denoiser

SHIPPED = Path(__file__).parent / "models"
"""The models that come with the package."""
DENOISERS = ("base", "tuned", "concept")
CLASSIFIER = "classifier"


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def save(model: nn.Module, folder: Path, name: str) -> None:
    """Write a model in float16, under its final name only once it is complete."""
    write_tensors(path_of(folder, name), {key: value.half() for key, value in model.state_dict().items()}, {})


def load(folder: Path, name: str) -> nn.Module:
    """Read a model by its name; ``concept`` is a null-text model.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = path_of(folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {folder}; `python -m gcfg demo --train` makes it.")
    model = Classifier() if name == CLASSIFIER else Denoiser()
    if name == "concept":
        blocks = cross_attention_blocks(model.unet)
        replace_cross_attention(model.unet, {k: torch.zeros(b.norm2.normalized_shape) for k, b in blocks.items()})
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return model.train(False).requires_grad_(False)


def load_all(folder: Path = SHIPPED) -> tuple[dict[str, nn.Module], Classifier]:
    """The denoisers by name, and the classifier."""
    return {name: load(folder, name) for name in DENOISERS}, load(folder, CLASSIFIER)
