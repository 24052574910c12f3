"""Names of UNet weights: ComfyUI's numbering and diffusers' blocks, derived from the names that a model has.

The numbering says it all: a level of the encoder ends where a block holds a downsampling (``op``), a level of the
decoder where a block holds an upsampling (``conv``). So no table of architectures is needed, and models of any depth
are covered: SD1.5, SD2, SDXL, distilled and shrunken ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..attention import FEATURE

T = TypeVar("T")

_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_NUMBERED = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)|(middle_block)()\.(\d+)\.(.+)")


def diffusers_names(keys: Iterable[str]) -> dict[str, str]:
    """The diffusers name of every ComfyUI UNet key, null-text features included.

    Raises:
        ValueError: a key that no image UNet of the Stable Diffusion kind has.
    """
    keys = list(keys)
    sections = _sections(keys)
    return {key: _name(key, sections) for key in keys}


def rename(tensors: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """The same entries under new names; what has no new name keeps its own."""
    return {names.get(key, key): value for key, value in tensors.items()}


def null_text_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the null-text form of a UNet (590 for the 686 of SD1.5, 1260 for the 1680 of SDXL).

    Args:
        shapes: names and shapes of the UNet with its cross-attention, in either naming.
    """
    blocks = attention_blocks(shapes)
    removed = tuple(f"{block}.{layer}." for block in blocks for layer in ("attn2", "norm2"))
    kept = {key: tuple(shape) for key, shape in shapes.items() if not key.startswith(removed)}
    width = {block: shapes[f"{block}.attn2.to_out.0.weight"][0] for block in blocks}
    return kept | {feature_key(block): (1, 1, width[block]) for block in blocks}


def attention_blocks(keys: Iterable[str]) -> list[str]:
    """The transformer blocks that have a cross-attention, by the name of its first weight, in either naming."""
    return [key.removesuffix(".attn2.to_q.weight") for key in keys if key.endswith(".attn2.to_q.weight")]


def feature_blocks(keys: Iterable[str]) -> list[str]:
    """The transformer blocks that have a null-text feature, in either naming."""
    return [key.removesuffix(f".attn2.{FEATURE}") for key in keys if key.endswith(f".attn2.{FEATURE}")]


def feature_key(block: str) -> str:
    """The name of a block's null-text feature."""
    return f"{block}.attn2.{FEATURE}"


def _sections(keys: list[str]) -> dict[tuple[str, int], tuple[int, int]]:
    """For each numbered block of encoder and decoder its (level, index within the level)."""
    contents = defaultdict(set)
    for key in keys:
        if match := _NUMBERED.fullmatch(key):
            section, number, _, rest = match.groups()[:4]
            if section:
                contents[section, int(number)].add(rest.split(".")[0])
    places = {}
    for side, sampling in (("input_blocks", "op"), ("output_blocks", "conv")):
        level = index = 0
        for number in sorted(n for s, n in contents if s == side):
            if (side, number) == ("input_blocks", 0):
                continue
            places[side, number] = (level, index)
            index += 1
            if sampling in contents[side, number]:
                level, index = level + 1, 0
    return places


def _name(key: str, places: Mapping[tuple[str, int], tuple[int, int]]) -> str:
    """The diffusers name of one key."""
    layer, _, parameter = key.rpartition(".")
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{parameter}"
    match = _NUMBERED.fullmatch(key)
    if not match:
        raise ValueError(f"'{key}' is no weight of a Stable Diffusion UNet; only SD1.5, SD2 and SDXL kinds of UNet can "
                         "be null-text concept models")
    side, number, part, rest = (group for group in match.groups() if group is not None)
    if side == "middle_block":
        place, index = "mid_block", int(part) // 2
    else:
        level, index = places[side, int(number)]
        place = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}"
    return f"{place}.{_part(rest, index, key)}"


def _part(rest: str, index: int, key: str) -> str:
    """What follows the block in the diffusers name: a resnet, an attention, or a change of resolution."""
    layer, _, parameter = rest.rpartition(".")
    if layer in _RESNET:
        return f"resnets.{index}.{_RESNET[layer]}.{parameter}"
    if layer in ("op", "conv"):
        return f"{'down' if layer == 'op' else 'up'}samplers.0.conv.{parameter}"
    if layer in ("norm", "proj_in", "proj_out") or layer.startswith("transformer_blocks."):
        return f"attentions.{index}.{rest}"
    raise ValueError(f"'{key}' is no weight of an image UNet; models with time layers or other additions cannot be "
                     "null-text concept models")
