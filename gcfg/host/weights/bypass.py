"""LoRAs of bypass loaders, which act in the forward pass of the module that all clones share, as ordinary patches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import comfy.weight_adapter
from comfy.model_patcher import ModelPatcher

from .unmerged import ADDED, DORA, NotRowwise


def as_patches(patcher: ModelPatcher) -> ModelPatcher:
    """A clone whose bypass adapters are patches of its weights, which compute the same; itself if it has none.

    Raises:
        NotRowwise: an injection of another kind, or an adapter that is not the same in both forms.
    """
    if not patcher.injections:
        return patcher
    plain = patcher.clone()
    plain.injections = {}
    for injection in (i for listed in patcher.injections.values() for i in listed):
        for name, adapter, strength in _bypassing(injection):
            if not plain.add_patches({f"{name}.weight": adapter}, strength):
                raise NotRowwise(f"a bypass adapter of {name} has no weight")
    return plain


def _bypassing(injection) -> Iterable[tuple[str, object, float]]:
    """Layer, adapter and strength of everything that an injection of the host's bypass loaders injects."""
    kind = getattr(comfy.weight_adapter, "BypassInjectionManager", None)
    manager = inspect.getclosurevars(injection.inject).nonlocals.get("self")
    if kind is None or not isinstance(manager, kind):
        raise NotRowwise("it carries injections of another kind than a bypass LoRA")
    for name, (adapter, strength) in manager.adapters.items():
        at = DORA.get(type(adapter))
        if not isinstance(adapter, ADDED) or len(adapter.weights) > at and adapter.weights[at] is not None:
            raise NotRowwise(f"the bypass adapter of {name} does more than add to its layer")
        yield name, adapter, strength
