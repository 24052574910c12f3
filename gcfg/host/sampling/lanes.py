"""A lane is what one MODEL of a recipe runs as: whose weights, whose patches, and conditionings of its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from comfy.model_patcher import ModelPatcher

from ...guidance import BASE
from ...nulltext.rowwise import RowAdapter
from ..models import same_modules, same_options, same_weights, with_own_weights
from .conditionings import Conds
from .rows import NotRowwise, row_adapter


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
        options: its own model options (the base's come with each step).
    """

    patcher: ModelPatcher
    owner: ModelPatcher
    leader: str
    adapter: RowAdapter | None = None
    pairs: dict[str, dict[str, Conds]] = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    @property
    def conds(self) -> dict[str, Conds]:
        """All its conditionings, each under a name of its own."""
        return {f"{pair} {kind}": conds for pair, part in self.pairs.items() for kind, conds in part.items()}


def assign_lanes(base: ModelPatcher, patchers: dict[str, ModelPatcher]) -> tuple[dict[str, Lane], dict[str, str]]:
    """Find out whose module runs which MODEL.

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
        owner, adapter = find_weights(patcher, list(lanes.values()))
        leader = next((n for n, lane in lanes.items() if lane.owner is owner and lane.leader == n
                       and same_options(patcher, lane.patcher)), name)
        lanes[name] = Lane(patcher, owner, leader, adapter)
    return lanes, twins


def find_weights(patcher: ModelPatcher, lanes: list[Lane]) -> tuple[ModelPatcher, RowAdapter | None]:
    """The MODEL whose module runs ``patcher`` beside those of the lanes, and the adapter that its rows then take."""
    for lane in lanes:
        if same_weights(patcher, lane.patcher):
            return lane.owner, lane.adapter
    owner = next((lane.owner for lane in lanes if lane.owner.model is patcher.model), None)
    if owner is None:
        return patcher, None
    try:
        if same_modules(patcher, owner):
            return owner, row_adapter(patcher, owner)
        reason = "the clones differ in more than the patches of their weights"
    except NotRowwise as error:
        reason = str(error)
    logging.info("GCFG: a second copy of the weights is made for this run, because %s.", reason)
    return with_own_weights(patcher), None
