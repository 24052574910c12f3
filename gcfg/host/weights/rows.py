"""Which clones of a MODEL can run on rows of its batches, over one copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

import comfy.hooks
import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from ...rows.changes import NORMS, Added, LayerChange, additive
from ...rows.differences import Dense
from ...rows.network import RowAdapter
from .. import KEY
from .bypass import as_patches
from .unmerged import NotRowwise, only_adds, unmerged

__all__ = ["NotRowwise", "row_adapter"]

NETWORK = "diffusion_model."
SWITCH = ".attn2.to_out.0"
KEPT = f"{KEY}_rows"
"""Under this key a clone carries its adapter of the last run, with what it was made for."""
LARGEST = 0.5
"""An adapter of more than this share of the weights is better kept as a copy, which the host can offload."""


def row_adapter(clone: ModelPatcher, owner: ModelPatcher, hooks: Sequence[comfy.hooks.WeightHook] = ()) -> RowAdapter:
    """What makes the owner's weights the clone's, as an adapter for rows; bypass LoRAs of both count.

    Args:
        hooks: may change the owner's weights during the run. In a model of its own they would change the clone's, so
            both may only add where they meet: the adapter switches nothing off, and scales and turns nothing. Bypass
            LoRAs add to whatever a hook has made of a layer.

    Raises:
        NotRowwise: a patch has another shape than its weight or reaches outside the layers, a hook scales what it
            changes, or the change is about as large as the model.
    """
    injected = [i for patcher in (clone, owner) for listed in patcher.injections.values() for i in listed]
    scaled = scaled_by(hooks, owner)
    made_for = (clone.model, clone.patches_uuid, owner.patches_uuid, injected, bool(hooks), scaled)
    kept = clone.attachments.get(KEPT)
    if kept is None or kept[0] != made_for:
        (plain, turned), (other, turned_there) = as_patches(clone), as_patches(owner)
        if turned_there:
            raise NotRowwise(f"the base's own bypass adapter turns the output of {min(turned_there)}")
        differences = _Differences(plain, other, bool(hooks))
        if clash := min(scaled & differences.in_weights(differing(clone, owner)), default=None):
            raise NotRowwise(f"a LoRA hook does more than to add to {clash}, which the clone's patches change, too")
        kept = made_for, differences.adapter(turned)
        clone.set_attachments(KEPT, kept)  # for the next run with the same inputs
    return kept[1]


def scaled_by(hooks: Sequence[comfy.hooks.WeightHook], owner: ModelPatcher) -> frozenset[str]:
    """The weights to which LoRA hooks do more than add, as DoRA does."""
    if not hooks:
        return frozenset()
    probe, target = owner.clone(), comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    for hook in hooks:
        hook.add_hook_patches(probe, {}, target, comfy.hooks.HookGroup())
    return frozenset(key for by_key in probe.hook_patches.values() for key, patches in by_key.items()
                     if not all(only_adds(data) and keep == 1.0 for _, data, keep, *_ in patches))


def differing(clone: ModelPatcher, owner: ModelPatcher) -> dict[str, int]:
    """By weight, how many of its first patches two MODELs share; without those that share all."""
    found = {}
    for key in dict.fromkeys([*clone.patches, *owner.patches]):
        ours, theirs = clone.patches.get(key, []), owner.patches.get(key, [])
        shared = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if not _same(a, b)),
                      min(len(ours), len(theirs)))
        if shared < max(len(ours), len(theirs)):
            found[key] = shared
    return found


class _Differences:
    """The patches by which a clone differs from the MODEL whose module runs it."""

    def __init__(self, clone: ModelPatcher, owner: ModelPatcher, hooked: bool):
        self.clone, self.owner, self.hooked = clone, owner, hooked
        self.common, self.added, self.removed = {}, {}, {}
        for key, shared in differing(clone, owner).items():
            ours, theirs = clone.patches.get(key, []), owner.patches.get(key, [])
            self.common[key], self.added[key], self.removed[key] = ours[:shared], ours[shared:], theirs[shared:]

    def in_weights(self, patched: Container[str]) -> set[str]:
        """Weights that a hook changes together with the differences; what a bypass LoRA adds comes after the layer.

        Args:
            patched: weights whose own patches differ, without those of bypass loaders.
        """
        return {key for key in self.added if key in patched or not all(
            only_adds(data) for _, data, *_ in (*self.added[key], *self.removed[key]))}

    def adapter(self, turned: Mapping[str, tuple]) -> RowAdapter:
        """The differences, and by layer what turns its output afterwards."""
        constants = {} if self.hooked else self._constants()
        layers: dict[str, LayerChange] = {}
        for key in self.added:
            name, _, parameter = key.removeprefix(NETWORK).rpartition(".")
            if not key.startswith(NETWORK) or parameter not in ("weight", "bias"):
                raise NotRowwise(f"{key} is no weight of a layer")
            before = layers.get(name, LayerChange())
            layers[name] = self._bias(key, before) if parameter == "bias" else self._weight(key, before)
        for key, outputs in turned.items():
            name = key.removeprefix(NETWORK)
            layers[name] = replace(layers.get(name, LayerChange()), outputs=outputs)
        adapter = RowAdapter(layers, constants)
        if adapter.nbytes > LARGEST * self.owner.model_size():
            raise NotRowwise("the change is about as large as the model")
        return adapter

    def _weight(self, key: str, change: LayerChange) -> LayerChange:
        layer, original = self.clone.model.get_submodule(key.rpartition(".")[0]), self.original(key)[0]
        if isinstance(layer, NORMS):
            return LayerChange(change.steps, self.difference(key), change.bias)
        if not _is_linear(layer) or len(original.shape) < 2:
            raise NotRowwise(f"{key} belongs to a {type(layer).__name__}")
        return LayerChange(self._steps(key, layer, tuple(original.shape)), change.weight, change.bias)

    def _bias(self, key: str, change: LayerChange) -> LayerChange:
        return LayerChange(change.steps, change.weight, self.difference(key))

    def _steps(self, key: str, layer: nn.Module, shape: tuple[int, ...]) -> tuple:
        """The owner's own patches taken back, then the clone's; where that cannot be, the difference as a whole."""
        steps = []
        try:
            for strength, *rest in reversed(self.removed[key]):
                step = unmerged((-strength, *rest), key, layer, shape, lambda: self.merged(self.clone, key))
                if not additive(step):
                    raise NotRowwise(f"the patch of {key} on the base cannot be taken back")
                steps.append(step)
            for count, patch in enumerate(self.added[key]):
                done = [*self.common[key], *self.added[key][:count]]
                steps.append(unmerged(patch, key, layer, shape, lambda done=done: self.merged(self.clone, key, done)))
            if self.hooked and not all(map(additive, steps)):
                raise NotRowwise(f"the patches of {key} do more than to add")
        except NotRowwise:
            return (Added(Dense(self.difference(key))),)
        return tuple(steps)

    def difference(self, key: str) -> Tensor:
        """Clone minus owner, float32 on the CPU."""
        ours, theirs = (self.merged(patcher, key) for patcher in (self.clone, self.owner))
        if ours.shape != theirs.shape:
            raise NotRowwise(f"the patch of {key} changes its shape")
        return (ours - theirs).cpu()

    def merged(self, patcher: ModelPatcher, key: str, patches: Sequence | None = None) -> Tensor:
        """A weight with a MODEL's patches as the host merges them, float32."""
        weight, convert = self.original(key)
        whole = self._whole(key, weight, convert)
        patches = patcher.patches.get(key, []) if patches is None else patches
        return comfy.lora.calculate_weight(list(patches), whole, key, original_weights={key: [(weight, convert)]})

    def _whole(self, key: str, weight: Tensor, convert: Callable) -> Tensor:
        """A weight of any storage in float32, without patches; layers of GGUF packs dequantize their own."""
        device = comfy.model_management.get_torch_device()
        dequantize = getattr(self.owner.model.get_submodule(key.rpartition(".")[0]), "get_weight", None)
        if dequantize is None or type(weight) in (Tensor, nn.Parameter):
            whole = comfy.model_management.cast_to_device(weight, device, torch.float32, copy=True)
            return convert(whole, inplace=True)
        own = weight.to(device)
        own.patches = []  # those of the MODEL that is loaded
        return dequantize(own, torch.float32)

    def original(self, key: str) -> tuple[Tensor, Callable]:
        """A weight as it was loaded, wherever the host keeps it while patches are merged, and what dequantizes it."""
        weight, _, convert = get_key_weight(self.owner.model, key)
        if key in self.owner.backup:
            weight = self.owner.backup[key].weight
        if key in self.owner.hook_backup:
            weight = self.owner.hook_backup[key][0]
        return weight, convert or (lambda weight, inplace: weight)

    def _constants(self) -> dict[str, Tensor]:
        """Outputs (C,) of cross-attentions that the clone switches off, by name; takes their patches out of the lists.

        A switched-off cross-attention (``attn2.to_out.0.weight`` set to zero: null text) need not run at all.
        """
        found = {}
        for key in [k for k in self.added if k.startswith(NETWORK) and k.endswith(f"{SWITCH}.weight")]:
            last = self.added[key][-1] if self.added[key] else None
            if last is None or not _is_set(last) or last[1][1][0].any() or last[3] is not None:
                continue
            name = key.removesuffix(".to_out.0.weight")
            found[name.removeprefix(NETWORK)] = self.merged(self.clone, f"{name}.to_out.0.bias").cpu()
            for gone in [k for k in self.added if k.startswith(f"{name}.")]:
                del self.added[gone]
        return found


def _is_linear(layer: nn.Module) -> bool:
    """True for linear and convolution layers of any making, quantized ones of the host and of other packs included."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return False
    return hasattr(layer, "in_features") or isinstance(layer, nn.modules.conv._ConvNd)


def _is_set(patch: Sequence) -> bool:
    data = patch[1]
    return not isinstance(data, WeightAdapterBase) and len(data) == 2 and data[0] == "set"


def _same(a: Sequence, b: Sequence) -> bool:
    """True for the same patch on both: equal strengths, the same data."""
    return a[0] == b[0] and a[1] is b[1] and a[2:] == b[2:]
