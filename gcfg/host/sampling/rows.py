"""Which clones of a MODEL can run on rows of its batches, over one copy of the weights."""

from __future__ import annotations

from collections.abc import Sequence

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...nulltext.rowwise import NORMS, LayerDelta, RowAdapter, subtracted
from ..concepts.concept import weights

UNET = "diffusion_model."
SWITCH = ".attn2.to_out.0"


class NotRowwise(Exception):
    """A clone's patches cannot be applied to rows; the message says which and why."""


def row_adapter(clone: ModelPatcher, owner: ModelPatcher) -> RowAdapter:
    """What makes the owner's weights the clone's, as an adapter for rows.

    Low-rank patches on linear and convolution layers, differences of biases and norms, and a cross-attention that is
    switched off (``attn2.to_out.0.weight`` set to zero: null text) can be applied to rows.

    Raises:
        NotRowwise: some patch of the clone or of the owner is of another kind.
    """
    network = clone.model.diffusion_model
    if not isinstance(network, UNetModel):
        raise NotRowwise(f"{type(network).__name__} may regroup its batch")
    added, removed = _differences(clone, owner)
    constants = _constants(clone, added, removed)
    layers: dict[str, LayerDelta] = {}
    for patches, sign in ((added, 1.0), (removed, -1.0)):
        for key, entries in patches.items():
            for entry in entries:
                delta = _delta(clone, key, entry)
                _collect(layers, _layer(key.rpartition(".")[0]), delta if sign > 0 else subtracted(delta))
    return RowAdapter(layers, constants)


def _differences(clone: ModelPatcher, owner: ModelPatcher) -> tuple[dict[str, list], dict[str, list]]:
    """By weight, the patches that the clone has beyond those in common, and those that the owner has."""
    added, removed = {}, {}
    for key in dict.fromkeys([*clone.patches, *owner.patches]):
        ours, theirs = clone.patches.get(key, []), owner.patches.get(key, [])
        common = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if not _same(a, b)),
                      min(len(ours), len(theirs)))
        added[key], removed[key] = ours[common:], theirs[common:]
    return added, removed


def _constants(clone: ModelPatcher, added: dict[str, list], removed: dict[str, list]) -> dict[str, Tensor]:
    """Outputs (C,) of cross-attentions that the clone switches off, by name; takes their patches out of both lists."""
    switched = []
    for key in [k for k, patches in added.items() if k.endswith(f"{SWITCH}.weight") and "set" in map(_kind, patches)]:
        last = added[key][-1]
        if _kind(last) != "set" or last[1][1][0].any():
            raise NotRowwise(f"{key} is set to something other than zero")
        name = key.removesuffix(".weight")
        switched.append(_layer(name))
        for patches in (added, removed):
            patches.pop(key, None)
            patches.pop(f"{name}.bias", None)
    if not switched:
        return {}
    try:
        biases = weights(clone, keys=[f"{name}.bias" for name in switched])
    except ValueError as error:
        raise NotRowwise(str(error)) from error
    return {name.removesuffix(".to_out.0"): biases[f"{name}.bias"].float() for name in switched}


def _layer(key: str) -> str:
    if not key.startswith(UNET):
        raise NotRowwise(f"{key} lies outside the UNet")
    return key.removeprefix(UNET)


def _same(a: Sequence, b: Sequence) -> bool:
    """True for the same patch on both: equal strengths, the same data."""
    return a[0] == b[0] and a[1] is b[1] and a[2:] == b[2:]


def _kind(patch: Sequence) -> str:
    """The kind of a patch's data as the host names it."""
    data = patch[1]
    if isinstance(data, LoRAAdapter):
        return "lora"
    return data[0] if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], str) else type(data).__name__


def _delta(clone: ModelPatcher, key: str, patch: Sequence) -> LayerDelta:
    """One patch of the host, ``(strength, data, strength_model, offset, function)``, as a change of its layer."""
    strength, data, strength_model, offset, function = patch
    layer = clone.model.get_submodule(key.rpartition(".")[0])
    if strength_model != 1.0 or offset is not None or function is not None:
        raise NotRowwise(f"the patch of {key} scales or cuts the weight")
    if _kind(patch) == "lora" and key.endswith(".weight") and isinstance(layer, nn.Linear | nn.Conv2d):
        up, down, alpha, mid, dora_scale, reshape = (*data.weights, None, None, None)[:6]
        if mid is not None or dora_scale is not None or reshape is not None or getattr(layer, "groups", 1) != 1:
            raise NotRowwise(f"the LoRA of {key} is of a kind that changes more than a low-rank sum")
        scale = strength * (alpha / down.shape[0] if alpha is not None else 1.0)
        return LayerDelta(pairs=((up.flatten(1).float() * scale, down.float()),))
    if _kind(patch) == "diff" and len(data[1]) == 1 and data[1][0].ndim == 1:
        change = data[1][0].float() * strength
        if key.endswith(".bias") and isinstance(layer, (nn.Linear, nn.Conv2d, *NORMS)):
            return LayerDelta(bias=change)
        if key.endswith(".weight") and isinstance(layer, NORMS):
            return LayerDelta(weight=change)
    raise NotRowwise(f"the '{_kind(patch)}' patch of {key} is no low-rank sum")


def _collect(layers: dict[str, LayerDelta], name: str, delta: LayerDelta) -> None:
    """Add a change of a layer to those that are there."""
    before = layers.get(name, LayerDelta())

    def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return b if a is None else a if b is None else a + b
    layers[name] = LayerDelta(before.pairs + delta.pairs, total(before.weight, delta.weight),
                              total(before.bias, delta.bias))
