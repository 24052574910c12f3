"""An adapter in the form of a LoRA file that ComfyUI's own LoRA loaders apply, and back.

The cross-attention is switched off by setting its output weight to zero, its bias becomes the feature:
``attn2.to_out.0.set_weight`` = 0 and ``attn2.to_out.0.diff_b`` = feature - bias of the base. The loaders scale only the
second with the strength, so such a file is exact at strength 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .adapter import Adapter
from .checkpoint import CheckpointError

_PREFIX = "diffusion_model."
_OUTPUT = "attn2.to_out.0"


def to_stock_lora(adapter: Adapter, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the LoRA file.

    Args:
        adapter: what to write.
        base: weights of the base, of which the biases of ``attn2.to_out.0`` are needed.

    The differences of those biases stay float32, so that nothing is lost beyond one rounding.
    """
    tensors = {}
    for layer, (up, down) in adapter.pairs.items():
        tensors[f"{_PREFIX}{layer}.lora_up.weight"] = up.reshape(*up.shape, *(1,) * (down.ndim - 2))
        tensors[f"{_PREFIX}{layer}.lora_down.weight"] = down
    for key, delta in adapter.deltas.items():
        layer, _, parameter = key.rpartition(".")
        tensors[f"{_PREFIX}{layer}.{'diff' if parameter == 'weight' else 'diff_b'}"] = delta
    for block, feature in adapter.features.items():
        bias = base[f"{block}.{_OUTPUT}.bias"]
        tensors[f"{_PREFIX}{block}.{_OUTPUT}.set_weight"] = torch.zeros(1, 1)  # the loaders broadcast it
        tensors[f"{_PREFIX}{block}.{_OUTPUT}.diff_b"] = feature.float().reshape(-1) - bias.float().to(feature.device)
    return tensors


def from_stock_lora(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], name: str = "the file") -> Adapter:
    """The adapter in such a file; ``alpha`` is folded in.

    Raises:
        CheckpointError: a tensor that the form does not have, or a layer that the base does not have.
    """
    pairs, deltas, features = {}, {}, {}
    for key, tensor in tensors.items():
        layer, ending = _split(key, name)
        if ending == "lora_up.weight":
            pairs[layer] = _pair(tensors, f"{_PREFIX}{layer}", tensor, name)
        elif ending == "set_weight":
            if not layer.endswith(f".{_OUTPUT}") or tensor.any():
                raise CheckpointError(f"{name}: '{key}' sets a weight, which a concept model does only to switch its "
                                      "cross-attention off; load the file with Load LoRA instead.")
            shift = tensors.get(f"{_PREFIX}{layer}.diff_b", torch.zeros(()))
            if f"{layer}.bias" not in base:
                raise CheckpointError(f"{name}: the base model has no '{layer}'; the file was made for another "
                                      "architecture.")
            bias = base[f"{layer}.bias"].float().cpu()
            features[layer.removesuffix(f".{_OUTPUT}")] = (bias + shift.float()).reshape(1, 1, -1)
        elif ending == "diff" or (ending == "diff_b" and f"{_PREFIX}{layer}.set_weight" not in tensors):
            deltas[f"{layer}.{'weight' if ending == 'diff' else 'bias'}"] = tensor
    return Adapter(pairs, deltas, features)


def _pair(tensors: Mapping[str, Tensor], key: str, up: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """``up`` (out, rank) and ``down``, the scale alpha / rank in ``up``."""
    down = tensors.get(f"{key}.lora_down.weight")
    if down is None:
        raise CheckpointError(f"{name}: '{key}.lora_down.weight' is missing; save or download the file again.")
    alpha = tensors.get(f"{key}.alpha")
    scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
    return up.flatten(1) * scale, down


def _split(key: str, name: str) -> tuple[str, str]:
    """Layer and kind of a tensor of the file."""
    for ending in ("lora_up.weight", "lora_down.weight", "alpha", "diff", "diff_b", "set_weight"):
        if key.startswith(_PREFIX) and key.endswith(f".{ending}"):
            return key.removeprefix(_PREFIX).removesuffix(f".{ending}"), ending
    raise CheckpointError(f"{name}: '{key}' is not of the form that Save Concept Model writes; load the file with Load "
                          "LoRA instead.")
