"""A transformer with quantized layers, as hosts that have them load it from a file."""

import json

import comfy.ops
import torch

from . import tiny
from .families import FAMILIES

FAMILY = FAMILIES["Qwen-Image"]
LAYERS = ("attn.to_q", "attn.to_out.0", "img_mlp.net.2")
"""Ends of the names of its quantized layers."""
SUPPORTED = hasattr(comfy.ops, "mixed_precision_ops")
"""Whether this host loads such layers."""


def quantized(format_name: str, seed: int = 1):
    """A model with quantized weights as its file would hold them, and one with what these weights stand for."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    exact = FAMILY.model(seed)
    weights = dict(exact.model.diffusion_model.state_dict())
    for name in [n for n, w in weights.items() if w.ndim == 2 and n.removesuffix(".weight").endswith(LAYERS)]:
        packed = QuantizedTensor.from_float(weights.pop(name), QUANT_ALGOS[format_name]["comfy_tensor_layout"])
        exact.model.diffusion_model.get_parameter(name).data.copy_(packed.dequantize())
        weights |= packed.state_dict(name)
        stated = json.dumps({"format": format_name}).encode()
        weights[f"{name.removesuffix('.weight')}.comfy_quant"] = torch.tensor(list(stated), dtype=torch.uint8)
    config = type(exact.model.model_config)(dict(exact.model.model_config.unet_config))
    config.quant_config = {"mixed_ops": True}
    return tiny.loaded(config, weights, torch.float32), exact
