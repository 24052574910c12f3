"""What a checkpoint is, whether it fits a base model to the last key, and its weights under ComfyUI's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import torch
from torch import Tensor

from ..attention import FEATURE
from ..tokens import projections
from .checkpoint import CheckpointError
from .keymap import attention_blocks, diffusers_names, feature_blocks, feature_key, null_text_shapes, rename

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
ADAPTER_ENDINGS = (".up", ".down", ".delta", f".attn2.{FEATURE}")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.")
_MARKERS = {"v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"}
_LORA = ("lora_up.", "lora_down.", "lora_A", "lora_B", "lora.up.", "lora.down.", "_lora.", "lora_linear_layer",
         "hada_w", "lokr_w", ".oft_")
_LORA_ENDINGS = (".diff", ".diff_b", ".set_weight", ".reshape_weight")


class Kind(str, Enum):
    """Kinds of files; the value is how a message names them."""

    NULL_TEXT = "a null-text concept model"
    NULL_TOKENS = "a null-text concept model of a transformer"
    STOCK_UNET = "a null-text concept model in the form of a stock UNet"
    FULL = "a UNet with its cross-attention"
    ADAPTER = "a GCFG concept adapter"
    STOCK_LORA = "a concept model in the form of a stock LoRA"
    UNPREPARED = "a null-text concept model without its features"
    LORA = "a LoRA"
    CONTROLNET = "a ControlNet"
    VAE = "a VAE"
    TEXT_ENCODER = "a text encoder"
    OTHER_MODEL = "a diffusion model of another architecture"
    UNKNOWN = "no model that GCFG knows"


_ADVICE = {
    Kind.UNPREPARED: "its cross-attention is gone, but the null_text_feature tensors that replace it were never "
                     "computed (the official preparation script forgets them); ask its author for a prepared file, or "
                     "convert the base model with Convert to Null-Text Model and train that",
    Kind.LORA: "load it with Load LoRA on the base model instead",
    Kind.CONTROLNET: "load it with Load ControlNet Model instead",
    Kind.VAE: "load it with Load VAE instead",
    Kind.TEXT_ENCODER: "load it with Load CLIP instead",
    Kind.OTHER_MODEL: "load it with Load Diffusion Model instead, as a concept it is measured under the empty prompt",
    Kind.UNKNOWN: "choose a concept model file",
}


def identify(tensors: Mapping[str, Tensor]) -> Kind:
    """What a state dict is, from its names (and for stock UNets from whether their cross-attention is switched off)."""
    keys = list(tensors)
    if keys and all(key.endswith(ADAPTER_ENDINGS) for key in keys):
        return Kind.ADAPTER
    if projections(keys):
        return Kind.NULL_TOKENS
    if any(key.endswith(".attn2.to_out.0.set_weight") for key in keys):
        return Kind.STOCK_LORA
    if any(key.endswith(_LORA_ENDINGS) or any(part in key for part in _LORA) for key in keys):
        return Kind.LORA
    unet = unet_part(tensors)
    if not is_unet(unet):
        return _other(keys)
    blocks = attention_blocks(unet)
    if feature_blocks(unet):
        return Kind.NULL_TEXT
    if not blocks:
        return Kind.UNPREPARED if any(".transformer_blocks." in key for key in unet) else Kind.OTHER_MODEL
    outputs = [unet.get(f"{block}.attn2.to_out.0.weight") for block in blocks]
    return Kind.STOCK_UNET if all(o is not None and not o.any() for o in outputs) else Kind.FULL


def unet_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's weights of a checkpoint, without prefix and without the host's one-number markers."""
    for prefix in _PREFIXES:
        part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if is_unet(part):
            return part
    return {key: value for key, value in tensors.items() if key not in _MARKERS}


def is_unet(keys: Iterable[str]) -> bool:
    """True for the names of an image UNet, in either naming, but not of a ControlNet."""
    keys = set(keys)
    named = {"conv_in.weight", "conv_out.weight"} <= keys and any(key.startswith("down_blocks.") for key in keys)
    return named or {"input_blocks.0.0.weight", "out.2.weight"} <= keys


def unet_weights(tensors: Mapping[str, Tensor], base: Mapping[str, tuple[int, ...]], name: str
                 ) -> tuple[dict[str, Tensor], Kind]:
    """The weights of a full or null-text UNet file under ComfyUI's names, checked strictly against a base model.

    Args:
        tensors: what ``checkpoint.read`` gave.
        base: names and shapes of the base model's UNet with its cross-attention, ComfyUI's names.
        name: the file's name, for messages.

    Returns:
        The weights, in null-text form unless the kind is FULL, and what the file was.

    Raises:
        CheckpointError: another kind of file, missing or extra keys, other shapes, types other than float16, bfloat16
            and float32, values that are not finite, or features that are all zero.
    """
    kind = identify(tensors)
    if kind in _ADVICE:
        raise CheckpointError(f"{name} is {kind.value}: {_ADVICE[kind]}.")
    expected = null_text_shapes(base) if kind is Kind.NULL_TEXT else {k: tuple(v) for k, v in base.items()}
    weights = unet_part(tensors)
    if "conv_in.weight" in weights:
        names = diffusers_names(expected)
        old = {"class_embedding.": "add_embedding."}
        weights = {_respell(key, old): value for key, value in weights.items()}
        check_keys(weights, {names[key]: shape for key, shape in expected.items()}, name, kind)
        weights = rename(weights, {new: key for key, new in names.items()})
    else:
        check_keys(weights, expected, name, kind)
    check_values(weights, name)
    if kind is Kind.STOCK_UNET:
        weights = null_text_from_stock(weights)
    check_features({key: value for key, value in weights.items() if key.endswith(FEATURE)}, name)
    return weights, kind


def check_keys(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], name: str, kind: Kind) -> None:
    """Refuse missing keys, extra keys and other shapes, naming them and what the file probably is."""
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shaped = [key for key in expected if key in tensors and tuple(tensors[key].shape) != tuple(expected[key])]
    faults = []
    if missing:
        faults.append(f"{len(missing)} keys are missing ({_some(missing)})")
    if extra:
        faults.append(f"{len(extra)} keys are not expected ({_some(extra)})")
    if shaped:
        key = shaped[0]
        faults.append(f"{len(shaped)} tensors have another shape ({key} is {tuple(tensors[key].shape)}, the base model "
                      f"has {tuple(expected[key])})")
    if faults:
        raise CheckpointError(f"{name} does not fit the base model: {'; '.join(faults)}. "
                              f"{_guess(tensors, expected, kind, bool(shaped))}")


def check_values(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse types other than float16, bfloat16 and float32, and values that are NaN or infinite."""
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{name}: '{key}' is {str(tensor.dtype).removeprefix('torch.')}; concept models are "
                                  "float16, bfloat16 or float32, save it in one of these.")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name}: '{key}' holds NaN or infinite values, the training diverged or the file is "
                                  "damaged; use an earlier checkpoint.")


def check_features(features: Mapping[str, Tensor], name: str) -> None:
    """Refuse features that are all zero: they were never computed."""
    if features and not any(feature.any() for feature in features.values()):
        raise CheckpointError(f"{name}: all null_text_feature tensors are zero, so they were never computed (the "
                              "official code leaves them so in silence); ask its author for a prepared file.")


def null_text_from_stock(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The null-text form of a stock UNet whose cross-attention output is its bias (ComfyUI's names)."""
    shapes = null_text_shapes({key: tuple(value.shape) for key, value in weights.items()})
    biases = {feature_key(b): weights[f"{b}.attn2.to_out.0.bias"].reshape(1, 1, -1) for b in attention_blocks(weights)}
    return {key: biases[key] if key in biases else weights[key] for key in shapes}


def stock_from_null_text(weights: Mapping[str, Tensor], context_width: int) -> dict[str, Tensor]:
    """The stock UNet with the same outputs: attn2 weights 0, output bias = feature, norm2 the identity.

    Args:
        weights: a null-text model, ComfyUI's names.
        context_width: width of the text conditioning that the architecture reads (768 for SD1.5, 2048 for SDXL).
    """
    stock = {key: value for key, value in weights.items() if not key.endswith(FEATURE)}
    for block in feature_blocks(weights):
        feature = weights[feature_key(block)].reshape(-1)
        width = len(feature)
        for layer, shape in (("to_q", (width, width)), ("to_k", (width, context_width)),
                             ("to_v", (width, context_width)), ("to_out.0", (width, width))):
            stock[f"{block}.attn2.{layer}.weight"] = feature.new_zeros(shape)
        stock[f"{block}.attn2.to_out.0.bias"] = feature
        stock[f"{block}.norm2.weight"] = torch.ones_like(feature)
        stock[f"{block}.norm2.bias"] = torch.zeros_like(feature)
    return stock


def _respell(key: str, old: Mapping[str, str]) -> str:
    for start, new in old.items():
        if key.startswith(start):
            return new + key.removeprefix(start)
    return key


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _guess(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], kind: Kind, shaped: bool) -> str:
    """What the file probably is, as a sentence."""
    count, wanted = (len({*feature_blocks(keys), *attention_blocks(keys)}) for keys in (tensors, expected))
    if kind is Kind.NULL_TEXT and attention_blocks(tensors):
        return "It mixes null-text features with cross-attention weights, as a stopped conversion does; convert again."
    if count != wanted:
        return (f"It is probably {kind.value} of another architecture: it has {count} cross-attention blocks, the base "
                f"model has {wanted}; connect the base model that it was made from.")
    if shaped:
        return (f"It is probably {kind.value} of another architecture or of an inpainting variant; connect the base "
                "model that it was made from.")
    return f"It is probably {kind.value} that was saved incompletely or by another program; export it again."


def _other(keys: list[str]) -> Kind:
    """What a state dict is that holds no UNet."""
    tests = (
        (Kind.CONTROLNET, ("control_model.", "zero_convs.", "controlnet_", "input_hint_block.")),
        (Kind.VAE, ("first_stage_model.", "encoder.down", "decoder.up", "encoder.conv_in", "decoder.conv_in",
                    "taesd_")),
        (Kind.TEXT_ENCODER, ("text_model.", "cond_stage_model.", "conditioner.", "encoder.block.", "shared.weight",
                             "transformer.resblocks.", "token_embedding.")),
        (Kind.OTHER_MODEL, ("double_blocks.", "joint_blocks.", "transformer_blocks.", "diffusion_model.", "blocks.0.",
                            "input_blocks.", "down_blocks.", "layers.0.")),
    )
    for kind, starts in tests:
        if any(key.startswith(starts) for key in keys):
            return kind
    return Kind.UNKNOWN
