"""The conditionings of a lane: copies of its own, processed in pairs as the host processes positive and negative.

The host copies areas, GLIGEN and old ControlNets from the positive to the negative, numbers conditionings for its
caches, and keeps state on hooks and ControlNets. None of this may be shared between two models of a recipe.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace

import comfy.hooks
import torch
from comfy.sampler_helpers import convert_cond
from comfy.samplers import process_conds
from torch import Tensor

from ....guidance import UNCONDITIONAL, Guidance, Prediction, Recipe
from ..chain import POSITIVE, fingerprint
from .hooks import collect_hooks

SAMPLER = ""
"""Name of the pair that the sampler's own conditionings are."""

Conds = list[dict]


class Conditionings:
    """What the names of conditionings in a recipe stand for in one run.

    Conditionings that the host processes together are a pair, whatever their number. The sampler's own are one pair;
    each of the recipe's is the positive of another, with the sampler's unconditional as its negative.

    Args:
        host: the sampler's conditionings by the host's names, unprocessed.
        own: the recipe's by name, as the host's nodes pass them on.
        only_unconditional: the sampler has no positive of its own; what stands there is the unconditional.

    Attributes:
        negative: the host's name of the unconditional.
        places: by name, the pair and the place in it.
    """

    def __init__(self, host: Mapping[str, Conds], own: Mapping[str, list], only_unconditional: bool):
        self.host, self.own = host, {name: convert_cond(conditioning) for name, conditioning in own.items()}
        self.negative = "empty_negative_prompt" if "empty_negative_prompt" in host else "negative"  # of PerpNegGuider
        self.places = {POSITIVE: (SAMPLER, "positive"), UNCONDITIONAL: (SAMPLER, self.negative)}
        known = {fingerprint(host[kind]): name for name, (_, kind) in self.places.items() if kind in host}
        self.same = {POSITIVE: UNCONDITIONAL} if only_unconditional else {}
        self.same |= {name: known[key] for name, c in self.own.items() if (key := fingerprint(c)) in known}
        for name in self.own:
            self.places |= {name: (name, "positive"), beside(name): (name, "negative")}

    def weight_hooks(self) -> list[comfy.hooks.WeightHook]:
        """The hooks on all of them that patch weights."""
        return collect_hooks([*self.host.values(), *self.own.values()]).get_type(comfy.hooks.EnumHookType.Weight)

    def pair(self, pair: str) -> Mapping[str, Conds]:
        """The conditionings of a pair, unprocessed."""
        if pair == SAMPLER:
            return self.host
        negative = {"negative": self.host[self.negative]} if self.negative in self.host else {}
        return {"positive": self.own[pair], **negative}

    def resolved(self, recipe: Recipe) -> Recipe:
        """A recipe with one name for what is the same, and each guidance measured from what the host would pair."""
        recipe = recipe.renamed(conditionings=self.same)
        return replace(recipe, guidances=tuple(map(self._paired, recipe.guidances)))

    def _paired(self, g: Guidance) -> Guidance:
        def reference(towards: Prediction, origin: Prediction) -> Prediction:
            own = self.own.get(towards.conditioning)
            if own is None or origin.conditioning != UNCONDITIONAL or not hands_over(own):
                return origin
            return replace(origin, conditioning=beside(towards.conditioning))

        across = g.perpendicular_to and (g.perpendicular_to[0], reference(*g.perpendicular_to))
        return replace(g, reference=reference(g.prediction, g.reference), perpendicular_to=across)


def beside(name: str) -> str:
    """Name of the unconditional as the host pairs it with a conditioning: with its areas and its ControlNet."""
    return f"{UNCONDITIONAL} beside {name}"


def hands_over(conds: Conds) -> bool:
    """True if the host gives its unconditional something of this conditioning."""
    return any("area" in c or c.get("set_area_to_bounds") or c.get("gligen") is not None
               or ("control" in c and c.get("control_apply_to_uncond")) for c in conds)


class Copies:
    """Copies of conditionings for one MODEL: the same object is copied once, whatever it hangs on.

    Args:
        shared: for the sampler's own MODEL, whose hooks and ControlNets stay those that the host prepares. Another one
            gets hooks with keyframes of its own (the flag that one has changed lies on the hook, and the first MODEL
            that asks consumes it) and ControlNets with a range in noise levels of its own.
    """

    def __init__(self, shared: bool):
        self.shared = shared
        self._made: dict[int, tuple] = {}

    def __call__(self, conds: Mapping[str, Conds]) -> dict[str, Conds]:
        return {kind: [self._entry(c) for c in part] for kind, part in conds.items()}

    def _entry(self, cond: dict) -> dict:
        own = cond.copy()
        if not self.shared and cond.get("hooks") is not None:
            own["hooks"] = self._once(cond["hooks"], self._hooks)
        if not self.shared and cond.get("control") is not None:
            own["control"] = self._once(cond["control"], self._control)
        return own

    def _once(self, original, copy):
        """The copy of an object; the original is kept along, so that its id stays taken."""
        return self._made.setdefault(id(original), (original, copy(original)))[1]

    def _hooks(self, group: comfy.hooks.HookGroup) -> comfy.hooks.HookGroup:
        own = group.clone()
        for hook in own.hooks:
            hook.hook_keyframe = self._once(hook.hook_keyframe, lambda keyframes: keyframes.clone())
        return own

    def _control(self, control):
        own = control.copy()
        if control.extra_hooks is not None:
            own.extra_hooks = self._once(control.extra_hooks, self._hooks)
        if control.previous_controlnet is not None:
            own.set_previous_controlnet(self._once(control.previous_controlnet, self._control))
        return own


def process(conds: Mapping[str, Conds], model, noise: Tensor, device: torch.device, latent_image: Tensor | None,
            denoise_mask: Tensor | None, seed: int | None, latent_shapes: list | None) -> dict[str, Conds]:
    """The host's processing of conditionings that belong together, numbered anew.

    Args:
        conds: by the host's names, "positive" and "negative" above all.
        model: the host's inner model that will be asked for them.
        noise: of the shape of the latent, (B, C, ...).
    """
    newer = {"latent_shapes": latent_shapes} if "latent_shapes" in inspect.signature(process_conds).parameters else {}
    done = process_conds(model, noise, dict(conds), device, latent_image, denoise_mask, seed, **newer)
    return {kind: [{**c, "uuid": uuid.uuid4()} for c in part] for kind, part in done.items()}


def same(conds: Conds, other: Conds | None) -> bool:
    """True for a conditioning and itself, or a pack's copy of it: their parts keep their numbers."""
    return conds is other or other is not None and [c.get("uuid") for c in conds] == [c.get("uuid") for c in other]


def added_to(conds: Iterable[dict], host: Iterable[Conds]) -> dict:
    """What parts of conditionings say to the model beyond what they said when they were processed, by name."""
    known = {c.get("uuid"): c["model_conds"] for part in host for c in part}
    return {name: value for c in conds for name, value in c["model_conds"].items()
            if name not in known.get(c.get("uuid"), c["model_conds"])}


def with_added(conds: Conds, added: Mapping) -> Conds:
    """A conditioning that says more to the model."""
    return [{**c, "model_conds": {**added, **c["model_conds"]}} for c in conds]


def is_active(conds: Conds, sigma: float) -> bool:
    """False if every part of a conditioning is limited to other noise levels: the host then predicts zeros."""
    return any(c.get("timestep_end", 0.0) <= sigma <= c.get("timestep_start", torch.inf) for c in conds)
