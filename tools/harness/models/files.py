"""Genuine model files of a few megabytes, made from a seed, that the host's stock loaders load.

A full-size CLIP alone has 124 million weights. The large tensors of a file here are overlapping views of a few seeded
buffers: a ``.ckpt`` stores a buffer once, however many tensors look into it.
"""

import math
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from . import shapes
from .weights import draw, gain, generator, pass_input_through, rewritten

_LARGE = 32768
_LATENT_SCALE = 0.18215


class ModelFiles(NamedTuple):
    """Names of the files, as the host's loader nodes list them."""

    checkpoint: str
    unet: str
    lora: str
    controlnet: str
    concept: str = ""
    full_clip: str = ""
    ip_adapter: str = ""
    motion: str = ""


NAMES = ModelFiles("tiny_sd15.ckpt", "tiny_concept.ckpt", "tiny_lora.safetensors", "tiny_control.pth",
                   "tiny_adapter.safetensors", "tiny_clip_l.pth")


def write_models(models: Path, seed: int = 0) -> ModelFiles:
    """Write a base checkpoint and models that fit it into the folder ``models`` of a host.

    Base: UNet, CLIP-L and autoencoder (CheckpointLoaderSimple). Concept: a UNet of the same architecture with other
    weights (UNETLoader). LoRA: for the UNet's attention (LoraLoader). ControlNet: for the UNet (ControlNetLoader).
    Concept adapter: low-rank weights and null-text features for the UNet (GCFGLoadConceptModel). A whole CLIP-L:
    the base's text encoder with its projection, and the vision model (CLIPVisionLoader, GCFGTuneWords).
    """
    folders = ("checkpoints", "diffusion_models", "loras", "controlnet", "concept_models", "clip_vision",
               "text_encoders")
    whole = full_clip(seed)
    contents = (checkpoint(seed), unet(seed + 1), lora(seed + 2), controlnet(seed + 3), adapter(seed + 4), whole, whole)
    names = [name for name in (*NAMES, NAMES.full_clip) if name]
    for folder, name, weights in zip(folders, names, contents, strict=True):
        path = models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(weights, path)
        else:
            torch.save(weights, path)
    return NAMES


def checkpoint(seed: int, network: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """UNet, text encoder and autoencoder under the names of a Stable Diffusion 1.5 checkpoint.

    Args:
        network: the UNet's weights; without any those of ``unet``.
    """
    text = overlapping(shapes.clip_l(), seed)
    weights = {f"model.diffusion_model.{name}": tensor for name, tensor in (network or unet(seed)).items()}
    weights |= {f"cond_stage_model.{name}": tensor for name, tensor in text.items()}
    return weights | {f"first_stage_model.{name}": tensor for name, tensor in autoencoder(seed).items()}


def full_clip(seed: int) -> dict[str, torch.Tensor]:
    """A whole CLIP-L under the names of its authors' file: both encoders and their projections."""
    text = {name.removeprefix("transformer."): tensor for name, tensor in overlapping(shapes.clip_l(), seed).items()}
    return text | overlapping(shapes.vision_l(), seed)


def unet(seed: int) -> dict[str, torch.Tensor]:
    """A UNet alone, as UNETLoader takes it."""
    table = shapes.unet()
    weights = overlapping(table, seed)
    weights |= {name: draw(name, table[name], seed).half() for name in rewritten(table)}
    pass_input_through(weights)
    return weights


def controlnet(seed: int) -> dict[str, torch.Tensor]:
    """A ControlNet for ``unet``."""
    return overlapping(shapes.controlnet(), seed)


def autoencoder(seed: int) -> dict[str, torch.Tensor]:
    """A TAESD whose images lie around middle grey and whose latents lie around one."""
    weights = overlapping(shapes.taesd(), seed)
    last = weights["taesd_decoder.19.weight"]
    weights["taesd_decoder.19.weight"] = 2.0 * (last - last.mean(dim=(1, 2, 3), keepdim=True))
    weights["taesd_decoder.19.bias"] += 0.5
    weights["vae_scale"], weights["vae_shift"] = torch.tensor(_LATENT_SCALE), torch.tensor(0.0)
    return weights


def lora(seed: int, rank: int = 4, table: shapes.Shapes | None = None, only: str = ".attn") -> dict[str, torch.Tensor]:
    """A LoRA of low rank on every attention projection of ``unet``, or of the UNet of ``table``.

    Args:
        only: what the names of its layers contain.
    """
    weights = {}
    for name, shape in (table or shapes.unet()).items():
        if only in name and len(shape) == 2:
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            weights[f"{key}.lora_up.weight"] = draw(f"{key}.up", (shape[0], rank), seed)
            weights[f"{key}.lora_down.weight"] = draw(f"{key}.down", (rank, shape[1]), seed)
            weights[f"{key}.alpha"] = torch.tensor(float(rank))
    return weights


def ip_adapter(seed: int, tokens: int = 4) -> dict[str, torch.Tensor]:
    """An IP-Adapter for ``unet`` in its smallest form, that reads what CLIP-L says of a picture."""
    weights = {"image_proj.proj.weight": draw("proj", (tokens * shapes.TEXT, shapes.TEXT), seed),
               "image_proj.proj.bias": torch.zeros(tokens * shapes.TEXT),
               "image_proj.norm.weight": torch.ones(shapes.TEXT), "image_proj.norm.bias": torch.zeros(shapes.TEXT)}
    for n in range(16):  # one after each attention to the text of the whole UNet; this one has fewer
        for kind in "kv":
            name = f"ip_adapter.{2 * n + 1}.to_{kind}_ip.weight"
            weights[name] = draw(name, (shapes.WIDTH, shapes.TEXT), seed)
    return weights


def adapter(seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    """A concept adapter for ``unet``: low rank on every self-attention, a constant for every cross-attention."""
    weights = {}
    for name, shape in shapes.unet().items():
        layer = name.removesuffix(".weight")
        if ".attn1" in name and len(shape) == 2:
            weights[f"{layer}.up"] = draw(f"{layer}.up", (shape[0], rank), seed)
            weights[f"{layer}.down"] = draw(f"{layer}.down", (rank, shape[1]), seed)
        elif layer.endswith(".attn2.to_out.0") and len(shape) == 2:
            feature = f"{layer.removesuffix('.to_out.0')}.null_text_feature"
            weights[feature] = draw(feature, (1, 1, shape[0]), seed)
    return weights


def overlapping(table: shapes.Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Half precision weights for ``table``; the large ones share buffers, one for each power of two as gain."""
    large = {name: shape for name, shape in table.items() if math.prod(shape) > _LARGE}
    weights = {name: draw(name, shape, seed).half() for name, shape in table.items() if name not in large}
    sizes: dict[int, int] = {}
    for name, shape in large.items():
        power = _power(name, shape)
        sizes[power] = max(sizes.get(power, 0), _offset(name) + shape[0] * _stride(shape) + math.prod(shape[1:]))
    buffers = {
        power: (torch.randn(size, generator=generator(seed, f"buffer {power}")) * 2.0**power).half()
        for power, size in sizes.items()
    }
    for name, shape in large.items():
        inner = [math.prod(shape[k + 1 :]) for k in range(1, len(shape))]
        weights[name] = buffers[_power(name, shape)].as_strided(shape, (_stride(shape), *inner), _offset(name))
    return weights


def _power(name: str, shape: tuple[int, ...]) -> int:
    return round(math.log2(gain(name, shape)))


def _stride(shape: tuple[int, ...]) -> int:
    """The distance between rows: short enough for half a million weights in all, long enough to tell rows apart."""
    return min(math.prod(shape[1:]), max(61, 500_000 // shape[0]))


def _offset(name: str) -> int:
    return zlib.crc32(name.encode()) % 4096
