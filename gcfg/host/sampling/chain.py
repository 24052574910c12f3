"""A chain of guidances as the nodes pass it on, and its translation into a recipe over named sources."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher

from ...guidance import BASE, UNCONDITIONAL, Guidance, Performance, Prediction, Recipe, Schedule, Shaping
from ...guidance.trace import Trace
from ..models import check_acts, check_conditioning, check_mixable, check_shared_text

POSITIVE = "positive"
"""Name of the conditioning that the host's own sampler guides towards."""

REFERENCES = ("unconditional", "previous guidance", "custom")


@dataclass(frozen=True, eq=False)
class Link:
    """One guidance of a chain (socket type GCFG_GUIDANCE: a tuple of links), with real models and conditionings.

    ``None`` stands for the sampler's own: its base model, its unconditional (negative) conditioning.
    ``perpendicular_to`` is another guidance, of this chain or not: the part along its difference is taken out.
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
    perpendicular_to: Link | None = None


@dataclass(frozen=True)
class Sources:
    """What the names in a recipe stand for; conditionings in the form the host's nodes pass on, masks (B, H, W)."""

    models: dict[str, ModelPatcher]
    conditionings: dict[str, list]
    masks: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Spec:
    """What a patched MODEL carries: a recipe and what its names stand for."""

    recipe: Recipe
    models: dict[str, ModelPatcher]
    conditionings: dict[str, list]
    masks: dict[str, torch.Tensor]
    performance: Performance = field(default_factory=Performance)
    trace: Trace = field(default_factory=Trace, compare=False)  # of the last run

    def __deepcopy__(self, memo) -> Spec:
        """Itself: other packs copy the model options that hold it, and no MODEL may be copied along."""
        return self


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
    before = previous or baseline
    guidances = []
    for number, link in enumerate(links, start=1):
        label = link.name or f"Guidance {number}"
        if link.scale != 0:
            prediction = compiler.prediction(link.model, link.conditioning, label)
            reference, across, other = compiler.reference(link, baseline, before, label), None, link.perpendicular_to
            if other is not None:
                across = (compiler.prediction(other.model, other.conditioning, label),
                          compiler.reference(other, baseline, None, label))
            guidances.append(Guidance(prediction, reference, link.scale, link.start, link.end, link.schedule,
                                      link.shaping, compiler.mask(link.mask), label, across))
        before = link
    recipe = Recipe(tuple(guidances), baseline)
    used = {p.model for g in guidances for p in g.uses} | {baseline.model}
    models = {name: patcher for name, patcher in compiler.models.items() if name in used}
    return recipe, Sources(models, compiler.conditionings, compiler.masks)


def chain_of(recipe: Recipe, models: Mapping[str, ModelPatcher], conditionings: Mapping[str, list]) -> tuple[Link, ...]:
    """The chain that :func:`compile_chain` turns into a recipe, up to names.

    Args:
        recipe: measured from the sampler's own unconditional prediction.
        models, conditionings: what its names stand for, but ``BASE`` and ``UNCONDITIONAL``.
    """
    def sides(prediction: Prediction, reference: Prediction) -> dict:
        own = reference == recipe.baseline
        return dict(model=models.get(prediction.model), conditioning=conditionings.get(prediction.conditioning),
                    reference="unconditional" if own else "custom",
                    reference_model=None if own else models.get(reference.model),
                    reference_conditioning=None if own else conditionings.get(reference.conditioning))

    return tuple(Link(**sides(g.prediction, g.reference), scale=g.scale, start=g.start, end=g.end, schedule=g.schedule,
                      shaping=g.shaping, name=g.label,
                      perpendicular_to=Link(**sides(*g.perpendicular_to)) if g.perpendicular_to else None)
                 for g in recipe.guidances)


class _Compiler:
    """Gives each model, conditioning and mask of a chain one name."""

    def __init__(self, base: ModelPatcher):
        self.base = base
        self.models: dict[str, ModelPatcher] = {}
        self.conditionings: dict[str, list] = {}
        self.masks: dict[str, torch.Tensor] = {}
        self._names: dict[Hashable, str] = {id(base): BASE}

    def prediction(self, patcher: ModelPatcher | None, conditioning: list | None, label: str) -> Prediction:
        patcher = self.base if patcher is None else patcher
        if patcher is not self.base:
            check_mixable(self.base, patcher, label)
            check_acts(self.base, patcher, label)
        if conditioning is not None:
            check_conditioning(patcher, conditioning, label)
        else:
            check_shared_text(self.base, patcher, label)
        text = UNCONDITIONAL if conditioning is None else self._conditioning(conditioning)
        return Prediction(self._model(patcher), text)

    def reference(self, link: Link, baseline: Prediction, before: Prediction | Link | None, label: str) -> Prediction:
        """What a link is measured from; ``before`` is the link before it, or what stands for that."""
        if link.reference == "custom":
            return self.prediction(link.reference_model, link.reference_conditioning, f"{label}, reference")
        if link.reference == "unconditional":
            return baseline
        if before is None:
            raise ValueError(f"{label}: the guidance that it is perpendicular to must not be measured from a previous "
                             "one; give that a custom reference.")
        if isinstance(before, Link):
            return self.prediction(before.model, before.conditioning, before.name or f"{label}, reference")
        return before

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
