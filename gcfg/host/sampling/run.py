"""One sampling run of a recipe: which weights run what, loaded and prepared the host's way, and handed back."""

from __future__ import annotations

import inspect
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

import comfy.hooks
import torch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.sampler_helpers import cleanup_models, convert_cond, prepare_mask, prepare_model_patcher
from comfy.samplers import filter_registered_hooks_on_conds, preprocess_conds_hooks, process_conds

from ...guidance import BASE, UNCONDITIONAL, Momentum, Performance, Prediction, Progress, Recipe, Reuse
from ...guidance.trace import Trace
from ...nulltext.rowwise import RowwiseNetwork
from .. import KEY
from ..models import is_flow
from . import tracing
from .chain import POSITIVE, fingerprint
from .hooks import collect_hooks, register_hooks
from .lanes import Lane, assign_lanes


@dataclass(frozen=True)
class Spec:
    """What a patched MODEL carries: a recipe and what its names stand for.

    The MODELs themselves lie in the patched MODEL's additional models, in the order of ``models``: the host clones
    them along with it, so no closure may hold one.
    """

    recipe: Recipe
    models: tuple[str, ...]
    conditionings: dict[str, list]
    masks: dict[str, torch.Tensor]
    performance: Performance = field(default_factory=Performance)
    trace: Trace = field(default_factory=Trace, compare=False)  # of the last run


class Run:
    """A recipe during one call of a guider's ``sample``; a context manager, entered before the models load."""

    def __init__(self, guider, spec: Spec):
        self.guider, self.spec = guider, spec
        self.momentum = Momentum()
        self.networks: dict[ModelPatcher, RowwiseNetwork] = {}
        self.exits = ExitStack()
        self.additional = guider.model_patcher.get_additional_models_with_key(KEY)
        names = self._conditionings()
        self.lanes, twins = assign_lanes(guider.model_patcher, dict(zip(spec.models, self.additional, strict=True)))
        self.recipe = spec.recipe.renamed(twins, names)
        self._ask_lanes()

    @property
    def base(self) -> ModelPatcher:
        return self.lanes[BASE].owner

    @property
    def owners(self) -> list[ModelPatcher]:
        """The MODELs whose modules run, the base first, each once."""
        return list(dict.fromkeys(lane.owner for lane in self.lanes.values()))

    def inner(self, lane: Lane):
        """The host's inner model of a lane."""
        return self.guider.inner_model if lane.owner is self.base else lane.owner.model

    def options(self, lane: Lane) -> dict:
        """The model options that a lane's conditionings and hooks belong to, before sampling starts."""
        return self.guider.model_options if lane.leader == BASE else self.lanes[lane.leader].options

    def processed(self, prediction: Prediction) -> list[dict] | None:
        """The processed conditioning of a prediction, or None if there is none."""
        if prediction.model == BASE and prediction.conditioning in (POSITIVE, UNCONDITIONAL):
            return self.guider.conds.get({POSITIVE: "positive", UNCONDITIONAL: "negative"}[prediction.conditioning])
        return self.lanes[prediction.model].conds[prediction.conditioning]

    # --- before the models load ---------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        if self.recipe.baseline.model != BASE and "context_handler" in self.guider.model_options:
            raise ValueError("A baseline_model cannot be combined with context windows; leave one of them out.")
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _prepare(self) -> None:
        """Options and hooks of every lane; the MODELs to load; the run itself, where its wrappers find it."""
        self.guider.model_options[KEY] = self
        self.base.set_additional_models(KEY, self.owners[1:])
        for name, lane in self.lanes.items():
            if lane.leader == name != BASE:
                lane.options = create_model_options_clone(lane.patcher.model_options)
                prepare_model_patcher(lane.patcher, {}, lane.options)
                drop_own_wrappers(lane.options)
        for owner in self.owners:
            self._register_hooks(owner)

    def _conditionings(self) -> dict[str, str]:
        """Collect the conditionings by name; returns the names that stand for the sampler's own."""
        own = {POSITIVE: self.guider.conds.get("positive"), UNCONDITIONAL: self.guider.conds.get("negative")}
        self.conditionings = {name: conds for name, conds in own.items() if conds is not None}
        known = {fingerprint(conds): name for name, conds in self.conditionings.items()}
        self.only_unconditional = len(known) < len(self.conditionings)
        same = {}
        for name, conditioning in self.spec.conditionings.items():
            conds = convert_cond(conditioning)
            self.conditionings[name] = conds
            if (twin := known.get(fingerprint(conds))) is not None:
                same[name] = twin
        if self.only_unconditional:
            same[POSITIVE] = UNCONDITIONAL
        return same

    def _ask_lanes(self) -> None:
        """Give each lane its own copy of the conditionings that the recipe asks it for."""
        used = [(p, g.label) for g in self.recipe.guidances for p in g.uses]
        if self.recipe.baseline.model != BASE:
            used.append((self.recipe.baseline, "baseline_model"))
        for prediction, label in used:
            if prediction.conditioning not in self.conditionings:
                raise ValueError(f"{label} needs the {prediction.conditioning} conditioning, and this guider has none; "
                                 "use a guider with a negative input, or connect the guidance's own conditioning.")
            if prediction.model != BASE or prediction.conditioning not in (POSITIVE, UNCONDITIONAL):
                lane = self.lanes[prediction.model]
                conds = [c.copy() for c in self.conditionings[prediction.conditioning]]
                lane.conds.setdefault(prediction.conditioning, conds)

    def _register_hooks(self, owner: ModelPatcher) -> None:
        """Register the hooks of all conditionings that run on one module, together, with its MODEL."""
        lanes = [lane for lane in self.lanes.values() if lane.owner is owner]
        for lane in lanes:
            preprocess_conds_hooks(lane.conds)
        conds = [c for lane in lanes for c in lane.conds.values()]
        added = collect_hooks(conds)
        if owner is self.base:
            conds = [*self.guider.conds.values(), *conds]
        for lane in lanes:
            if added.hooks:
                register_hooks(owner, self.options(lane), added, collect_hooks(conds))
            filter_registered_hooks_on_conds(lane.conds, self.options(lane))
        if owner is self.base and len({c.get("hooks") for part in conds for c in part}) > 1:
            owner.hook_mode = comfy.hooks.EnumHookMode.MaxSpeed  # the host chose by its own conditionings alone

    def to_load(self, conds: dict[str, list]) -> dict[str, list]:
        """The host's conditionings and the recipe's: their ControlNets have to be loaded, too."""
        ours = {f"{KEY} {name} {key}": c for name, lane in self.lanes.items() for key, c in lane.conds.items()}
        return {**conds, **ours}

    @property
    def batch_factor(self) -> int:
        """By how much the largest batch of predictions exceeds the two that the host reckons with."""
        sizes = Counter({BASE: 2})
        for lane in self.lanes.values():
            sizes[lane.leader] += len(lane.conds)
        return (max(sizes.values()) + 1) // 2

    # --- models are loaded, sampling starts ---------------------------------------------------------------------

    def start(self, sigmas, noise, latent_image, denoise_mask, seed) -> None:
        """Prepare the other models, the conditionings and the masks for a latent of the shape of ``noise``."""
        sampling = self.guider.inner_model.model_sampling
        self.progress = Progress(sampling.percent_to_sigma, float(sampling.sigma_max))
        self.sigmas = [float(sigma) for sigma in sigmas]
        tracing.begin(self)
        performance = self.spec.performance
        self.reuse = Reuse(performance, self.sigmas, is_flow(self.base)) if performance.reuses else None
        self.masks = {name: prepare_mask(mask, noise.shape, noise.device) for name, mask in self.spec.masks.items()}
        shapes = getattr(self.guider.inner_model, "latent_shapes", None)
        takes_shapes = "latent_shapes" in inspect.signature(process_conds).parameters  # newer hosts only
        for owner in self.owners:
            if owner is not self.base:
                owner.pre_run()
                owner.model.latent_shapes = shapes
            self._apply_to_rows(owner)
        for lane in self.lanes.values():
            lane.options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
            for name in lane.conds:
                kind = "negative" if name == UNCONDITIONAL else "positive"
                # one call each: processed together, conditionings would exchange areas and ControlNets
                lane.conds[name] = process_conds(
                    self.inner(lane), noise, {kind: lane.conds[name]}, lane.owner.load_device, latent_image,
                    denoise_mask, seed, **({"latent_shapes": shapes} if takes_shapes else {}))[kind]

    def _apply_to_rows(self, owner: ModelPatcher) -> None:
        """Let an owner's network apply the adapters of its lanes to rows."""
        dtype = owner.model.manual_cast_dtype or owner.model.get_dtype()
        adapters = {name: lane.adapter.to(owner.load_device, dtype) for name, lane in self.lanes.items()
                    if lane.owner is owner and lane.adapter is not None}
        network = RowwiseNetwork(owner.model.diffusion_model, adapters)
        self.networks[owner] = self.exits.enter_context(network)

    # --- afterwards, whatever happened ---------------------------------------------------------------------------

    def __exit__(self, *_) -> None:
        self.exits.close()
        self.base.set_additional_models(KEY, self.additional)
        cleanup_models(self.to_load({}), [])
        for owner in self.owners[1:]:
            owner.cleanup()
            owner.restore_hook_patches()
        self.guider.model_options.pop(KEY, None)
        self.lanes.clear()


def drop_own_wrappers(options: dict) -> None:
    """Take this pack's wrappers out of model options, so that a clone of the base does not run the recipe again."""
    for by_key in options["transformer_options"].get("wrappers", {}).values():
        by_key.pop(KEY, None)
