"""ControlNets that are told the roles of a batch, where the host tells them places, and those that take over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from comfy.hooks import TransformerOptionsHook
from comfy.patcher_extension import WrappersMP

from .conditionings import Conds


class Roled:
    """A ControlNet for one batch; everything but what it is told of the batch is its own."""

    def __init__(self, control, roles: Callable[[Sequence[int]], list[int]]):
        vars(self).update(_control=control, _roles=roles)

    def __getattr__(self, name: str):
        return getattr(self._control, name)

    def __setattr__(self, name: str, value) -> None:
        setattr(self._control, name, value)

    def get_control(self, x, t, cond, batched_number: int, transformer_options: dict):
        """The host's call, once for a batch: weights of their own for the negative go by ``cond_or_uncond``."""
        transformer_options["cond_or_uncond"] = self._roles(transformer_options["cond_or_uncond"])  # others write, too
        return self._control.get_control(x, t, cond, batched_number, transformer_options)

    def get_instance_for_device(self, device):
        """Where the host spreads a batch over devices."""
        return Roled(self._control.get_instance_for_device(device), self._roles)


def with_roles(conds: Sequence[Conds], roles: Sequence[int]) -> list[Conds]:
    """Conditionings of one batch whose ControlNets see the roles; one object for each, as the host joins those."""
    made: dict[int, Roled] = {}

    def told(cond: dict) -> dict:
        control = cond.get("control")
        if control is None:
            return cond
        return {**cond, "control": made.setdefault(id(control), Roled(control, lambda at: [roles[i] for i in at]))}
    return [[told(cond) for cond in part] for part in conds]


def check_controls(pair: Iterable[Conds], host: Iterable[Conds], label: str) -> None:
    """Refuse a ControlNet that wraps a whole run and looks for itself on the sampler's own conditionings.

    Raises:
        ValueError: a pair that the sampler's MODEL predicts for holds one that ``host`` does not hold.
    """
    known = {id(control) for part in host for control in _controls(part)}
    if any(_wraps_runs(control) and id(control) not in known for part in pair for control in _controls(part)):
        raise ValueError(f"{label}: its conditioning carries a ControlNet that takes over a whole sampler (as "
                         "Reference of Advanced-ControlNet does) and is found on the sampler's own conditionings only. "
                         "Apply it to the sampler's positive and negative.")


def _controls(conds: Conds) -> Iterator:
    """The ControlNets of some conditionings, with those that they continue."""
    for control in [c.get("control") for c in conds]:
        while control is not None:
            yield control
            control = control.previous_controlnet


def _wraps_runs(control) -> bool:
    hooks = getattr(control, "extra_hooks", None)
    return hooks is not None and any(
        hook.transformers_dict.get("wrappers", {}).get(WrappersMP.OUTER_SAMPLE)
        for hook in hooks.hooks if isinstance(hook, TransformerOptionsHook) and hook.transformers_dict)
