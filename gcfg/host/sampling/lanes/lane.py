"""A lane is what one MODEL of a recipe runs as: whose weights, whose patches, and conditionings of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType

import comfy.samplers
from comfy.hooks import WeightHook
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.sampler_helpers import prepare_model_patcher
from comfy.samplers import CFGGuider

from ....guidance import BASE
from ....rows.network import RowAdapter
from ...models import same_modules, same_options, same_weights
from ...weights.bypass import as_patches
from ...weights.copies import with_own_weights
from ...weights.rows import NotRowwise, row_adapter
from .conditionings import Conds


@dataclass
class Lane:
    """Everything that runs with one set of weights and one set of patches.

    Attributes:
        patcher: the MODEL as the user built it.
        owner: the MODEL whose module runs it; another one if ``patcher`` is a clone of that.
        leader: name of the lane whose batch it joins: the same module under the same patches of other packs.
        adapter: what its rows of that batch take beside the owner's weights.
        pairs: its own copies of the conditionings that it is asked for, together with those that the host would
            process them with, ``{pair: {"positive": ..., "negative": ...}}``; unprocessed until sampling starts.
        guider: stands for it where packs wrap a whole run, and holds its model options; only for a lane that leads a
            batch beside the base's.
        patched: its model options hold attention patches that the base's do not.
        in_pairs: its patches make one prediction out of a positive and a negative in one batch.
    """

    patcher: ModelPatcher
    owner: ModelPatcher
    leader: str
    adapter: RowAdapter | None = None
    pairs: dict[str, dict[str, Conds]] = field(default_factory=dict)
    guider: CFGGuider | None = None
    patched: bool = False
    in_pairs: bool = False

    @property
    def conds(self) -> dict[str, Conds]:
        """All its conditionings, each under a name of its own."""
        return {f"{pair} {kind}": conds for pair, part in self.pairs.items() for kind, conds in part.items()}

    @property
    def options(self) -> dict:
        """Its own model options."""
        return self.guider.model_options

    def prepare(self, base_options: dict) -> None:
        """Give it model options of its own, as the host prepares those of a sampler's MODEL."""
        self.guider = CFGGuider(self.patcher if self.patcher.model is self.owner.model else self.owner)
        self.guider.conds, self.guider.inner_model = self.conds, self.owner.model
        self.guider.model_options = options = create_model_options_clone(self.patcher.model_options)
        self.patched, self.in_pairs = has_patches_beyond(options, base_options), needs_pairs(options, self.owner)
        prepare_model_patcher(self.patcher, {}, options)

    def within_wrappers(self, call: Callable, label: str) -> Callable:
        """A call of a whole run, within what its MODEL's packs wrap around one.

        Raises:
            ValueError: when called, if one of them replaces the host's sampling function, as AnimateDiff does: that
                serves the sampler's own two predictions only.
        """
        wrappers = get_all_wrappers(WrappersMP.OUTER_SAMPLE, self.options, is_model_options=True)
        packs = {getattr(wrapper, "__module__", None) for wrapper in wrappers}

        def checked(*args, **kwargs):
            if comfy.samplers.sampling_function.__module__ in packs:
                raise ValueError(f"{label}: its model carries a pack that takes over a whole sampler (as AnimateDiff "
                                 "does) and cannot act on this one prediction. Apply it to the sampler's model alone, "
                                 "or before the LoRA that makes a concept of that MODEL.")
            return call(*args, **kwargs)
        return WrapperExecutor.new_class_executor(checked, self.guider, wrappers).execute if wrappers else call


def assign_lanes(base: ModelPatcher, patchers: dict[str, ModelPatcher],
                 hooks: Sequence[WeightHook]) -> tuple[dict[str, Lane], dict[str, str]]:
    """Find out whose module runs which MODEL.

    Args:
        hooks: LoRA hooks on the conditionings.

    Returns:
        The lanes by name, and for each MODEL that equals an earlier one, the name of that.
    """
    lanes, twins = {BASE: Lane(base, base, BASE)}, {}
    for name, patcher in patchers.items():
        twin = next((n for n, lane in lanes.items()
                     if same_weights(patcher, lane.patcher) and same_options(patcher, lane.patcher)), None)
        if twin is not None:
            twins[name] = twin
            continue
        owner, adapter = find_weights(patcher, list(lanes.values()), hooks)
        leader = next((n for n, lane in lanes.items() if lane.owner is owner and lane.leader == n
                       and same_options(patcher, lane.patcher)), name)
        lanes[name] = Lane(patcher, owner, leader, adapter)
    return lanes, twins


def find_weights(patcher: ModelPatcher, lanes: list[Lane],
                 hooks: Sequence[WeightHook]) -> tuple[ModelPatcher, RowAdapter | None]:
    """The MODEL whose module runs ``patcher`` beside those of the lanes, and the adapter that its rows then take."""
    for lane in lanes:
        if same_weights(patcher, lane.patcher):
            return lane.owner, lane.adapter
    owner = next((lane.owner for lane in lanes if lane.owner.model is patcher.model), None)
    if owner is None:
        return patcher, None
    try:
        if same_modules(as_patches(patcher)[0], as_patches(owner)[0]):
            return owner, row_adapter(patcher, owner, hooks)
        reason = "the clones differ in more than the patches of their weights"
    except NotRowwise as error:
        reason = str(error)
    own, new = with_own_weights(patcher)
    if new:
        logging.info("GCFG: a second copy of the weights is made and kept, because %s.", reason)
    return own, None


def needs_pairs(options: dict, owner: ModelPatcher) -> bool:
    """True if what is done to a MODEL wants each positive beside a negative in a batch of two, as the NAG packs do.

    They switch off the host's saving of the negative at cfg 1, or replace the network's ``forward`` for a run.
    """
    wants_negative = bool(options.get("disable_cfg1_optimization")) and has_patches_beyond(options, {})
    return wants_negative or isinstance(vars(owner.model.diffusion_model).get("forward"), MethodType)


def has_patches_beyond(options: dict, base: dict) -> bool:
    """True if model options hold attention patches or a function wrapper that the base's do not hold."""
    def patches(of: dict) -> set[int]:
        transformer = of.get("transformer_options", {})
        listed = [fn for part in transformer.get("patches", {}).values() for fn in part]
        replacing = [fn for part in transformer.get("patches_replace", {}).values() for fn in part.values()]
        return {id(fn) for fn in (*listed, *replacing, of.get("model_function_wrapper")) if fn is not None}
    return not patches(options) <= patches(base)
