"""Genuine models of ComfyUI, a few hundred thousand weights each, built in process from a seed.

Import it only where the host is on ``sys.path``. Every builder gives what a loader node gives (a ``ModelPatcher``, a
``ControlNet``, a conditioning), with the host's own classes inside: real detection is the business of ``files``.
"""

import re
from collections.abc import Callable, Mapping

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch

from .weights import draw, generator, pass_input_through

_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False,
}
_SD15 = _UNET | {
    "model_channels": 32, "num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1],
    "transformer_depth_output": [1, 1], "transformer_depth_middle": 1, "context_dim": 768, "adm_in_channels": None,
    "use_linear_in_transformer": False,
}
_SDXL = _UNET | {
    "model_channels": 64, "num_res_blocks": [1, 1], "channel_mult": [1, 1], "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": 1, "context_dim": 2048,
    "adm_in_channels": 2816, "num_classes": "sequential", "use_linear_in_transformer": True,
}
_SD3 = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "num_patches": 32 * 32, "pos_embed_max_size": 32, "pos_embed_scaling_factor": None,
}
_PREDICTIONS = {"eps": "EPS", "v": "V_PREDICTION", "flow": "FLOW"}


def sd15(seed: int = 0, prediction: str = "eps", dtype: torch.dtype = torch.float32, channels: int = 4):
    """A Stable Diffusion 1.5 class ``ModelPatcher`` of 0.4 M weights: four attn2 blocks, text width 768.

    ``prediction`` is "eps", "v" or "flow" (the same network under rectified flow, for models that must not be mixed).
    ``channels`` above 4 makes an inpainting model (9) of it.
    """
    return _unet(comfy.supported_models.SD15, _SD15 | {"in_channels": channels}, seed, prediction, dtype)


def sd2(seed: int = 0):
    """A Stable Diffusion 2 class ``ModelPatcher`` (eps): the latents of ``sd15``, text width 1024."""
    config = _SD15 | {"model_channels": 64, "context_dim": 1024, "use_linear_in_transformer": True}
    return _unet(comfy.supported_models.SD20, config, seed, "eps", torch.float32)


def sdxl(seed: int = 0, prediction: str = "eps", dtype: torch.dtype = torch.float32):
    """An SDXL class ``ModelPatcher`` of 3 M weights: text width 2048, pooled output 1280."""
    return _unet(comfy.supported_models.SDXL, _SDXL, seed, prediction, dtype)


def sd3(seed: int = 0, dtype: torch.dtype = torch.float32):
    """A flow matching model, Stable Diffusion 3 class: 16 latent channels, text width 4096, pooled output 2048."""
    return _patcher(comfy.supported_models.SD3(_SD3), seed, dtype)


def conditioning(seed: int = 0, tokens: int = 8, width: int = 768, batch: int = 1, pooled: int = 0, **extra) -> list:
    """A conditioning as CLIPTextEncode gives it, of random features; ``extra`` joins its dictionary."""
    features = torch.randn((batch, tokens, width), generator=generator(seed, "text"))
    if pooled:
        extra["pooled_output"] = torch.randn((batch, pooled), generator=generator(seed, "pooled"))
    return [[features, extra]]


def latent(batch: int = 1, channels: int = 4, height: int = 8, width: int = 8, seed: int | None = None) -> dict:
    """A LATENT: empty as from EmptyLatentImage, or of random content with a ``seed``."""
    shape = (batch, channels, height, width)
    samples = torch.zeros(shape) if seed is None else torch.randn(shape, generator=generator(seed, "latent"))
    return {"samples": samples}


def lora(model, seed: int = 0, rank: int = 2, strength: float = 1.0, only: str = "") -> dict[str, torch.Tensor]:
    """A LoRA file for ``model``, as ``comfy.utils.load_torch_file`` would give it, on all attention weights.

    ``only`` restricts it to names that contain the text, for instance "attn2".
    """
    weights = {}
    for name, weight in model.model.diffusion_model.state_dict().items():
        if weight.ndim != 2 or ".attn" not in name or only not in name:
            continue
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        weights[f"{key}.lora_up.weight"] = draw(key + "up", (weight.shape[0], rank), seed) * strength
        weights[f"{key}.lora_down.weight"] = draw(key + "down", (rank, weight.shape[1]), seed)
        weights[f"{key}.alpha"] = torch.tensor(float(rank))
    return weights


def controlnet(seed: int = 0):
    """A ControlNet for ``sd15``, as ControlNetLoader gives it; its hint is eight times the size of the latent."""
    config = {k: v for k, v in _SD15.items() if k not in ("out_channels", "use_temporal_attention")}
    config |= comfy.supported_models.SD15.unet_extra_config
    net = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, dtype=torch.float32, operations=comfy.ops.manual_cast)
    net.load_state_dict(_weights(net, seed))
    net.requires_grad_(False).eval()
    return comfy.controlnet.ControlNet(net, load_device=comfy.model_management.get_torch_device())


def _unet(family, config: dict, seed: int, prediction: str, dtype: torch.dtype):
    """A ModelPatcher of the ``family`` whose prediction type is given instead of detected."""
    kind = getattr(comfy.model_base.ModelType, _PREDICTIONS[prediction])
    typed = type(family.__name__, (family,), {"model_type": lambda self, state_dict, prefix="": kind})
    return _patcher(typed(config), seed, dtype)


def as_known(build: Callable, unet: Mapping):
    """What ``build`` makes of the settings of a network; an older host is not told of what it does not know."""
    try:
        return build(dict(unet))
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        return as_known(build, {name: value for name, value in unet.items() if name != unknown[1]})


def _patcher(config, seed: int, dtype: torch.dtype):
    """Model and random weights from a model config."""
    return loaded(config, None, dtype, seed)


def loaded(config, weights: dict | None, dtype: torch.dtype, seed: int = 0):
    """Model from a model config and weights, random ones if None, wrapped as the host's loader wraps them."""
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    cast = comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, "", device="cpu").to(offload_device)
    wrapper = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = wrapper(model, load_device=load_device, offload_device=offload_device)
    assign = {"assign": patcher.is_dynamic()} if hasattr(patcher, "is_dynamic") else {}
    weights = _weights(model.diffusion_model, seed) if weights is None else weights
    model.load_model_weights(weights, "", **assign)
    return patcher


def _weights(network: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Seeded weights for every tensor of ``network``, in its own types."""
    own = network.state_dict()
    weights = {name: draw(name, tuple(tensor.shape), seed) for name, tensor in own.items()}
    if "out.2.weight" in weights:
        pass_input_through(weights)
    return {name: tensor.to(own[name].dtype) for name, tensor in weights.items()}
