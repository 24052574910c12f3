"""Concept models as MODELs of the host: loaded from files, converted from other MODELs, applied as adapters."""

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
from torch import Tensor

from ...nulltext import checkpoint, stock_lora
from ...nulltext.adapter import Adapter
from ...nulltext.attention import FEATURE, is_null_text, replace_cross_attention
from ...nulltext.identify import Kind, identify, unet_weights
from ...nulltext.keymap import diffusers_names, feature_blocks, feature_key
from ...nulltext.provenance import Provenance, architecture_hash, fingerprint

CONCEPT = "gcfg_concept"
"""Under this key a concept MODEL carries its ``Concept`` as an attachment."""
UNET = "diffusion_model."


@dataclass(frozen=True)
class Concept:
    """What a concept MODEL is, kept with it.

    Attributes:
        kind: the kind of file that it came from or would be saved as.
        provenance: where it comes from.
        adapter: the adapter that was applied to the base, None for a model with weights of its own.
        strength: at which strength.
        patches_uuid: the host's mark of the MODEL's patches once the adapter was applied.
    """

    kind: Kind
    provenance: Provenance = field(default_factory=Provenance)
    adapter: Adapter | None = None
    strength: float = 1.0
    patches_uuid: object = None


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build models of a base's architecture, without its weights."""

    config: object
    model_type: object
    load_device: torch.device
    offload_device: torch.device
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, base: ModelPatcher) -> Blueprint:
        return cls(base.model.model_config, base.model.model_type, base.load_device, base.offload_device, shapes(base))

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


def shapes(base: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a base model's UNet with its cross-attention.

    Raises:
        ValueError: the model is no such UNet, or has no cross-attention left.
    """
    unet = base.model.diffusion_model
    found = {key: tuple(value.shape) for key, value in unet.state_dict().items() if key.endswith((".weight", ".bias"))}
    if is_null_text(unet):
        raise ValueError("the base model is itself a null-text concept model, which has no cross-attention; connect "
                         "the model that the concept was made from.")
    try:
        diffusers_names(found)
    except ValueError as error:
        raise ValueError(f"{type(base.model.model_config).__name__} cannot be the base of a concept model: {error}."
                         ) from error
    return found


def weights(patcher: ModelPatcher, patched: bool = True, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The UNet's weights on the CPU, wherever they are: with the MODEL's patches in float32, or as they were loaded.

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
    """The UNet's weights as they were loaded, without patches that the host may have merged; not to be changed."""
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
    if hasattr(management, "archive_model_dtypes"):
        management.archive_model_dtypes(unet)
    typed = {key: value if key.endswith(FEATURE) else value.to(dtype) for key, value in content.items()}
    unet.load_state_dict(typed, strict=True, assign=True)
    unet.requires_grad_(False)
    model.device = blueprint.offload_device
    if not management.is_device_cpu(blueprint.offload_device):
        model.to(blueprint.offload_device)
    managed = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return (ModelPatcher if disable_dynamic else managed)(
        model, load_device=blueprint.load_device, offload_device=blueprint.offload_device)


def load(base: ModelPatcher, path: str, roots: Iterable[str] | None = None, strength: float = 1.0
         ) -> tuple[ModelPatcher, str]:
    """A concept MODEL from a file, and a description of it.

    Args:
        base: the model that the concept was made from; it gives the architecture, and adapters are applied to it.
        path: any kind of concept file, see ``identify.Kind``.
        roots: folders in which the file must lie.
        strength: of an adapter.
    """
    architecture, name = shapes(base), Path(path).name
    tensors, metadata = checkpoint.read(path, roots)
    provenance, kind = Provenance.from_metadata(metadata, name), identify(tensors)
    if kind in (Kind.ADAPTER, Kind.STOCK_LORA):
        biases = [key for key in architecture if key.endswith("attn2.to_out.0.bias")]
        adapter = (Adapter.from_tensors(tensors, name) if kind is Kind.ADAPTER else
                   stock_lora.from_stock_lora(tensors, weights(base, keys=biases), name))
        adapter.check(architecture, name)
        return (apply_adapter(base, adapter, strength, provenance, kind),
                describe(name, kind, tensors, base, provenance))
    content, kind = unet_weights(tensors, architecture, name)
    text = describe(name, kind, content, base, provenance)
    blueprint = Blueprint.of(base)
    patcher = adopt(build(content, blueprint), base, Concept(kind, provenance))
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load_file, (str(checkpoint.locate(path, roots)), blueprint))
    return patcher, text


def load_file(path: str, blueprint: Blueprint, disable_dynamic: bool = False) -> ModelPatcher:
    """The bare MODEL of a UNet file, for hosts that load a model again by themselves."""
    content, _ = unet_weights(checkpoint.read(path)[0], blueprint.shapes, Path(path).name)
    return build(content, blueprint, disable_dynamic=disable_dynamic)


def adopt(patcher: ModelPatcher, base: ModelPatcher, concept: Concept) -> ModelPatcher:
    """Give a model that was built its ``Concept``, and the sampling that nodes have set on the base."""
    for name in ("model_sampling", "latent_format"):
        if name in base.object_patches:
            patcher.add_object_patch(name, base.object_patches[name])
    patcher.set_attachments(CONCEPT, concept)
    return patcher


def apply_adapter(base: ModelPatcher, adapter: Adapter, strength: float = 1.0, provenance: Provenance | None = None,
                  kind: Kind = Kind.ADAPTER) -> ModelPatcher:
    """A clone of the base with the adapter as ordinary patches, right in every sampler.

    In this order: low-rank pairs (the host's LoRA patches) and deltas ("diff") at ``strength``, then per block "set" of
    ``attn2.to_out.0.weight`` to zero and of its bias to the feature.
    """
    if CONCEPT in base.attachments and base.attachments[CONCEPT].adapter is not None:
        raise ValueError("the base model already carries a concept adapter; connect the model from before it.")
    patcher = base.clone()
    pairs = {}
    for layer, (up, down) in adapter.pairs.items():
        pairs |= {f"{UNET}{layer}.lora_up.weight": up, f"{UNET}{layer}.lora_down.weight": down}
    low_rank = comfy.lora.load_lora(pairs, {UNET + layer: f"{UNET}{layer}.weight" for layer in adapter.pairs})
    deltas = {UNET + key: ("diff", (delta,)) for key, delta in adapter.deltas.items()}
    fixed = {}
    for block, feature in adapter.features.items():
        fixed[f"{UNET}{block}.attn2.to_out.0.weight"] = ("set", (torch.zeros(1, 1),))
        fixed[f"{UNET}{block}.attn2.to_out.0.bias"] = ("set", (feature.reshape(-1),))
    for patches, scale in ((low_rank, strength), (deltas, strength), (fixed, 1.0)):
        missed = patches.keys() - set(patcher.add_patches(patches, scale)) if patches else ()
        if missed:
            raise RuntimeError(f"the host did not take the adapter's patch of '{sorted(missed)[0]}'.")
    concept = Concept(kind, provenance or Provenance(), adapter, strength, patcher.patches_uuid)
    patcher.set_attachments(CONCEPT, concept)
    return patcher


def stated(base: ModelPatcher, made_by: str, residual: Mapping[str, float] | None = None, notes: str = ""
           ) -> Provenance:
    """The provenance of something made from this base."""
    return Provenance(type(base.model.model_config).__name__, architecture_hash(shapes(base)),
                      fingerprint(originals(base)), made_by, residual or {}, notes)


def describe(name: str, kind: Kind, tensors: Mapping[str, Tensor], base: ModelPatcher, provenance: Provenance) -> str:
    """A concept file in a few lines, for people."""
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    lines = [f"{name}: {kind.value}, {len(tensors)} tensors in {', '.join(types)}, for "
             f"{provenance.architecture or type(base.model.model_config).__name__}"]
    if kind is Kind.FULL:
        lines.append("It still reads text. Convert to Null-Text Model makes a text-free concept model of it.")
    made_on = provenance.base_fingerprint if kind in (Kind.ADAPTER, Kind.STOCK_LORA) else ""
    if made_on and made_on != fingerprint(originals(base)):
        lines.append("Made on other base weights than the connected ones, so results may differ.")
    if provenance.residual:
        worst = max(provenance.residual, key=provenance.residual.get)
        lines.append(f"Calibration residual {provenance.mean_residual:.3f} on average, "
                     f"{provenance.residual[worst]:.3f} at most ({worst})")
    told = (("Made by", provenance.made_by), ("Notes", provenance.notes))
    return "\n".join([*lines, *(f"{what}: {words}" for what, words in told if words)])
