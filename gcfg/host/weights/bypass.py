"""LoRAs of bypass loaders, which act in the forward pass of the module that all clones share, as ordinary patches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import comfy.weight_adapter
from comfy.model_patcher import ModelPatcher

from .unmerged import ADDED, DORA, NotRowwise


def as_patches(patcher: ModelPatcher) -> ModelPatcher:
    """A clone whose bypass adapters are patches of its weights, which compute the same; itself if it has none.

    Injections of another kind, as motion modules, stay what they are.

    Raises:
        NotRowwise: an adapter that is not the same in both forms.
    """
    managers = {key: [_manager(i) for i in listed] for key, listed in patcher.injections.items()}
    bypassed = [key for key, found in managers.items() if None not in found]
    if not bypassed:
        return patcher
    plain = patcher.clone()
    plain.injections = {key: listed for key, listed in patcher.injections.items() if key not in bypassed}
    for manager in (m for key in bypassed for m in managers[key]):
        for name, adapter, strength in _adapters(manager):
            if not plain.add_patches({f"{name}.weight": adapter}, strength):
                raise NotRowwise(f"a bypass adapter of {name} has no weight")
    return plain


def _manager(injection):
    """What the host's bypass loaders inject with, or None for an injection of another kind."""
    kind = getattr(comfy.weight_adapter, "BypassInjectionManager", None)
    manager = inspect.getclosurevars(injection.inject).nonlocals.get("self")
    return manager if kind is not None and isinstance(manager, kind) else None


def _adapters(manager) -> Iterable[tuple[str, object, float]]:
    """Layer, adapter and strength of everything that is injected."""
    for name, (adapter, strength) in manager.adapters.items():
        at = DORA.get(type(adapter))
        if not isinstance(adapter, ADDED) or len(adapter.weights) > at and adapter.weights[at] is not None:
            raise NotRowwise(f"the bypass adapter of {name} does more than add to its layer")
        yield name, adapter, strength
