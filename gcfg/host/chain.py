"""A chain of guidances as the nodes pass it on, and its translation into a recipe over named sources."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher

from ..guidance import BASE, UNCONDITIONAL, Guidance, Prediction, Recipe, Schedule, Shaping
from .models import check_conditioning, check_mixable

POSITIVE = "positive"
"""Name of the conditioning that the host's own sampler guides towards."""

REFERENCES = ("unconditional", "previous guidance", "custom")


@dataclass(frozen=True, eq=False)
class Link:
    """One guidance of a chain (socket type GCFG_GUIDANCE: a tuple of links), with real models and conditionings.

    ``None`` stands for the sampler's own: its base model, its unconditional (negative) conditioning.
    """

    model: ModelPatcher | None = None
    conditioning: list | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    reference: str = "unconditional"
    reference_model: ModelPatcher | None = None
    reference_conditioning: list | None = None
    mask: torch.Tensor | None = None
    schedule: Schedule = field(default_factory=Schedule)
    shaping: Shaping = field(default_factory=Shaping)
    name: str = ""


@dataclass(frozen=True)
class Sources:
    """What the names in a recipe stand for; conditionings in the form the host's nodes pass on, masks (B, H, W)."""

    models: dict[str, ModelPatcher]
    conditionings: dict[str, list]
    masks: dict[str, torch.Tensor]


def compile_chain(base: ModelPatcher, links: Sequence[Link], *, baseline_model: ModelPatcher | None = None,
                  previous: Prediction | None = None) -> tuple[Recipe, Sources]:
    """Translate a chain into a recipe and its sources. Guidances of scale 0 are left out, with their models.

    Args:
        base: the MODEL to sample.
        baseline_model: predicts the baseline D_0 in place of the base.
        previous: what "previous guidance" means for the first link; the baseline if None.

    Raises:
        ValueError: a model or a conditioning that does not fit the base.
    """
    compiler = _Compiler(base)
    baseline = compiler.prediction(baseline_model, None, "baseline_model")
    previous = previous or baseline
    guidances = []
    for number, link in enumerate(links, start=1):
        label = link.name or f"Guidance {number}"
        prediction = compiler.prediction(link.model, link.conditioning, label, used=link.scale != 0)
        if link.scale != 0:
            reference = {"unconditional": baseline, "previous guidance": previous}.get(link.reference)
            if link.reference == "custom":
                reference = compiler.prediction(link.reference_model, link.reference_conditioning,
                                                f"{label}, reference")
            guidances.append(Guidance(prediction, reference, link.scale, link.start, link.end, link.schedule,
                                      link.shaping, compiler.mask(link.mask), label))
        previous = prediction
    recipe = Recipe(tuple(guidances), baseline)
    used = {p.model for g in guidances for p in (g.prediction, g.reference)} | {baseline.model}
    models = {name: patcher for name, patcher in compiler.models.items() if name in used}
    return recipe, Sources(models, compiler.conditionings, compiler.masks)


class _Compiler:
    """Gives each model, conditioning and mask of a chain one name."""

    def __init__(self, base: ModelPatcher):
        self.base = base
        self.models: dict[str, ModelPatcher] = {}
        self.conditionings: dict[str, list] = {}
        self.masks: dict[str, torch.Tensor] = {}
        self._names: dict[Hashable, str] = {id(base): BASE}

    def prediction(self, patcher: ModelPatcher | None, conditioning: list | None, label: str,
                   used: bool = True) -> Prediction:
        patcher = self.base if patcher is None else patcher
        if used and patcher is not self.base:
            check_mixable(self.base, patcher, label)
        if used and conditioning is not None:
            check_conditioning(patcher, conditioning, label)
        text = UNCONDITIONAL if conditioning is None else self._conditioning(conditioning)
        return Prediction(self._model(patcher), text)

    def _model(self, patcher: ModelPatcher) -> str:
        name = self._names.setdefault(id(patcher), f"model {len(self.models) + 1}")
        if name != BASE:
            self.models[name] = patcher
        return name

    def _conditioning(self, conditioning: list) -> str:
        key = fingerprint({"cross_attn": cross_attn, **options} for cross_attn, options in conditioning)
        name = self._names.setdefault(key, f"conditioning {len(self.conditionings) + 1}")
        self.conditionings[name] = conditioning
        return name

    def mask(self, mask: torch.Tensor | None) -> str | None:
        if mask is None:
            return None
        name = self._names.setdefault(id(mask), f"mask {len(self.masks) + 1}")
        self.masks[name] = mask
        return name


def fingerprint(conds) -> Hashable:
    """Equal for conditionings made of the same objects, before or after the host's ``convert_cond``."""
    ignored = ("uuid", "model_conds")
    return tuple(frozenset((k, v if isinstance(v, str | int | float) else id(v)) for k, v in cond.items()
                           if k not in ignored and v is not None) for cond in conds)
