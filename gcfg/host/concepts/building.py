"""MODELs of a base's architecture: what it is, their weights, and how one is built of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...nulltext.attention import FEATURE, is_null_text, replace_cross_attention
from ...nulltext.formats import checkpoint
from ...nulltext.formats.identify import is_unet
from ...nulltext.formats.keymap import diffusers_names, feature_blocks, feature_key
from ...nulltext.formats.networks import network_weights
from ...nulltext.tokens import COUNTS, has_constant_tokens, replace_projections, tokens_of

UNET = "diffusion_model."


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build models of a base's architecture, without its weights.

    Attributes:
        shapes: of the base's network, see ``architecture``.
        buffers: what its network holds that no file does (tables of positions).
    """

    config: object
    model_type: object
    load_device: torch.device
    offload_device: torch.device
    shapes: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, base: ModelPatcher) -> Blueprint:
        network, filed = base.model.diffusion_model, base.model.diffusion_model.state_dict().keys()
        buffers = {name: value for name, value in network.named_buffers() if name not in filed}
        return cls(base.model.model_config, base.model.model_type, base.load_device, base.offload_device,
                   architecture(base), buffers)

    def new_config(self):
        """A copy of the model config for plain weights of the base's prediction type."""
        config = object.__new__(type(self.config))  # not copy(): a config answers every attribute, __setstate__ too
        config.__dict__.update(self.config.__dict__)
        config.unet_config = dict(self.config.unet_config)
        config.sampling_settings = dict(self.config.sampling_settings)
        config.optimizations = dict(type(self.config).optimizations)
        config.custom_operations = config.quant_config = config.scaled_fp8 = None
        config.model_type = lambda state_dict, prefix="": self.model_type
        return config


def architecture(base: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a base model's network, of any family.

    Raises:
        ValueError: the model is a null-text one itself, or a UNet that cannot become one.
    """
    network = base.model.diffusion_model
    names = network.state_dict()
    if is_unet(names):
        return shapes(base)
    _check_reads_text(network)
    return {key: tuple(value.shape) for key, value in names.items()}


def _check_reads_text(network: nn.Module) -> None:
    if ignores_text(network):
        raise ValueError("the base model is itself a null-text concept model, which has no cross-attention; connect "
                         "the model that the concept was made from.")


def ignores_text(network: nn.Module) -> bool:
    """True for null-text models of either form."""
    return is_null_text(network) or has_constant_tokens(network)


def shapes(base: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a base model's UNet with its cross-attention.

    Raises:
        ValueError: the model is no such UNet, or has no cross-attention left.
    """
    unet = base.model.diffusion_model
    found = {key: tuple(value.shape) for key, value in unet.state_dict().items() if key.endswith((".weight", ".bias"))}
    _check_reads_text(unet)
    try:
        diffusers_names(found)
    except ValueError as error:
        raise ValueError(f"{type(base.model.model_config).__name__} cannot be the base of a concept model: {error}."
                         ) from error
    return found


def weights(patcher: ModelPatcher, patched: bool = True, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The network's weights on the CPU, wherever they are: with the MODEL's patches in float32, or as they were loaded.

    Copies, so that nothing that is done with them reaches the MODEL. ValueError for quantized weights.
    """
    found, wanted = {}, None if keys is None else set(keys)
    for key, original in originals(patcher).items():
        if wanted is not None and key not in wanted:
            continue
        patches = patcher.patches.get(UNET + key, []) if patched else []
        weight = original.to("cpu", torch.float32 if patches else original.dtype, copy=True)
        found[key] = comfy.lora.calculate_weight(patches, weight, UNET + key) if patches else weight
    return found


def originals(patcher: ModelPatcher) -> dict[str, Tensor]:
    """The network's weights as they were loaded, without patches that the host may have merged; not to be changed."""
    found = {}
    for key, (entry, *_) in patcher.get_key_patches(UNET).items():
        if type(entry[0]) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(f"the model's weights are quantized ({type(entry[0]).__name__}); load it in float16, "
                             "bfloat16 or float32.")
        found[key.removeprefix(UNET)] = entry[0].detach()
    return found


def build(content: Mapping[str, Tensor], blueprint: Blueprint, dtype: torch.dtype | None = None,
          disable_dynamic: bool = False) -> ModelPatcher:
    """A MODEL of the base's architecture with these weights and memory management of the host's own.

    The cross-attention is replaced before any weight is there, so it never takes memory.

    Args:
        content: all weights, ComfyUI's names, null-text if there are features; the MODEL takes them over.
        blueprint: the architecture.
        dtype: type of the weights in memory; None lets the host choose, as its own loaders do.
        disable_dynamic: build the ordinary patcher on hosts that have a dynamic one.
    """
    management, config = comfy.model_management, blueprint.new_config()
    if dtype is None:
        dtype = management.unet_dtype(model_params=comfy.utils.calculate_parameters(content),
                                      supported_dtypes=config.supported_inference_dtypes,
                                      weight_dtype=comfy.utils.weight_dtype(content))
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, blueprint.load_device,
                                                                  config.supported_inference_dtypes))
    model = config.get_model({}, "", device="meta")
    unet, blocks = model.diffusion_model, feature_blocks(content)
    if blocks:
        replace_cross_attention(unet, {block: content[feature_key(block)] for block in blocks})
    replace_projections(unet, tokens_of(content))
    if hasattr(management, "archive_model_dtypes"):
        management.archive_model_dtypes(unet)
    typed = {key: value if key.endswith((FEATURE, COUNTS)) else value.to(dtype) for key, value in content.items()}
    unet.load_state_dict(typed, strict=True, assign=True)
    fill_buffers(unet, blueprint.buffers)
    unet.requires_grad_(False)
    model.device = blueprint.offload_device
    if not management.is_device_cpu(blueprint.offload_device):
        model.to(blueprint.offload_device)
    managed = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return (ModelPatcher if disable_dynamic else managed)(
        model, load_device=blueprint.load_device, offload_device=blueprint.offload_device)


def load_file(path: str, blueprint: Blueprint, disable_dynamic: bool = False) -> ModelPatcher:
    """The bare MODEL of a file with all weights, for hosts that load a model again by themselves."""
    content, _ = network_weights(checkpoint.read(path)[0], blueprint.shapes, Path(path).name)
    return build(content, blueprint, disable_dynamic=disable_dynamic)


def fill_buffers(network: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Give buffers that no file holds (tables of positions) the values that they have in the base's network."""
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:
            module, _, leaf = name.rpartition(".")
            network.get_submodule(module)._buffers[leaf] = known[name].detach().to("cpu", copy=True)


def refuse_bypassed(patcher: ModelPatcher) -> None:
    """Refuse a MODEL with adapters that its weights do not show (ValueError)."""
    if patcher.injections:
        raise ValueError("the model carries adapters that are not merged into its weights (bypass); load them with the "
                         "ordinary LoRA loader before converting.")
