"""LoRAs of bypass loaders, which act in the forward pass of the module that all clones share, on rows."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass

import comfy.weight_adapter
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import BOFTAdapter, GLoRAAdapter, OFTAdapter
from torch import Tensor

from ...rows.differences import Movable, held
from .unmerged import ADDED, NotRowwise, on, without_magnitude


@dataclass(frozen=True)
class Bypassed(Movable):
    """An adapter of the host as its bypass loader runs it, g(y + h(x, y)) of a layer's whole output y."""

    adapter: object

    @property
    def nbytes(self) -> int:
        return held(tuple(self.adapter.weights))

    def to(self, device: torch.device, dtype: torch.dtype) -> Bypassed:
        return Bypassed(on(self.adapter, device, dtype))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.adapter.g(y + self.adapter.h(x, y))


def as_patches(patcher: ModelPatcher) -> tuple[ModelPatcher, dict[str, tuple[Bypassed, ...]]]:
    """A clone whose bypass adapters are patches of its weights, which compute the same; itself if it has none.

    A BOFT comes by layer: in a bypass it turns the bias, too, and its strength means another thing. A DoRA's magnitude
    is left out, as the host's bypass does. OFT and GLoRA are what their merged weights are, because the host's bypass
    of them ends in errors of shape.

    Injections of another kind, as motion modules, stay what they are.

    Raises:
        NotRowwise: an adapter of another kind, or a layer without a weight.
    """
    managers = {key: [_manager(i) for i in listed] for key, listed in patcher.injections.items()}
    bypassed = [key for key, found in managers.items() if None not in found]
    if not bypassed:
        return patcher, {}
    plain, turned = patcher.clone(), {}
    plain.injections = {key: listed for key, listed in patcher.injections.items() if key not in bypassed}
    found = [m.adapters.items() for key in bypassed for m in managers[key]]
    for name, (adapter, strength) in itertools.chain.from_iterable(found):
        if isinstance(adapter, BOFTAdapter) or name in turned:  # what comes after a turn, too
            turned[name] = (*turned.get(name, ()), Bypassed(adapter))
        elif not isinstance(adapter, (*ADDED, GLoRAAdapter, OFTAdapter)):
            raise NotRowwise(f"the bypass adapter of {name} is a {type(adapter).__name__}")
        elif not plain.add_patches({f"{name}.weight": without_magnitude(adapter)}, strength):
            raise NotRowwise(f"a bypass adapter of {name} has no weight")
    return plain, turned


def _manager(injection):
    """What the host's bypass loaders inject with, or None for an injection of another kind."""
    kind = getattr(comfy.weight_adapter, "BypassInjectionManager", None)
    manager = inspect.getclosurevars(injection.inject).nonlocals.get("self")
    return manager if kind is not None and isinstance(manager, kind) else None
