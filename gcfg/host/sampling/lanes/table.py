"""The lanes of one run, and what each prediction of its recipe is among them: which row of whose batch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from torch import Tensor

from ....guidance import BASE, UNCONDITIONAL, Prediction
from ..batch.row import GUIDED, UNGUIDED, Row
from ..chain import POSITIVE, Spec
from .conditionings import SAMPLER, Conditionings, Conds, Copies, added_to, beside, same, with_added
from .controls import check_controls
from .lane import Lane, assign_lanes


class Lanes(dict[str, Lane]):
    """Lanes by what a recipe calls their models; ``BASE`` is the sampler's own.

    Args:
        guider: the host's, with conditionings that it has not processed yet.

    Attributes:
        recipe: the recipe with one name for what is the same.
        leaders: the lanes that lead a batch, the base last.
        only_unconditional: the guider has no positive of its own; what stands there is the unconditional.

    Raises:
        ValueError: a conditioning that a guidance needs is not there, or cannot act on its lane.
    """

    def __init__(self, guider: CFGGuider, spec: Spec):
        self.guider = guider
        self.only_unconditional = getattr(guider, "first", CFGGuider) is None  # of our own guider
        self.conditionings = Conditionings(guider.conds, spec.conditionings, self.only_unconditional)
        lanes, twins = assign_lanes(guider.model_patcher, spec.models, self.conditionings.weight_hooks())
        super().__init__(lanes)
        self.leaders = [name for name, lane in reversed(lanes.items()) if lane.leader == name]
        self.recipe = self.conditionings.resolved(spec.recipe.renamed(twins))
        self._added: dict = {}
        self._ask()

    def _ask(self) -> None:
        """Give each lane its own copies of the conditionings that the recipe asks it for."""
        used = [(p, g.label) for g in self.recipe.guidances for p in g.uses]
        if self.recipe.baseline.model != BASE:
            used.append((self.recipe.baseline, "baseline_model"))
        copies = {owner: Copies(shared=owner is self.base) for owner in self.owners}
        for p, label in used:
            pair, kind = self.conditionings.places[p.conditioning]
            conds, lane = self.conditionings.pair(pair), self[p.model]
            if not conds.get(kind):
                raise ValueError(f"{label} needs the {p.conditioning} conditioning, and this guider has none; "
                                 "use a guider with a negative input, or connect the guidance's own conditioning.")
            if pair not in lane.pairs and not (p.model == BASE and pair == SAMPLER):  # that is the host's own
                if lane.owner is self.base:
                    check_controls(conds.values(), self.guider.conds.values(), label)
                lane.pairs[pair] = copies[lane.owner](conds)

    @property
    def base(self) -> ModelPatcher:
        return self[BASE].owner

    @property
    def owners(self) -> list[ModelPatcher]:
        """The MODELs whose modules run, the base first, each once."""
        return list(dict.fromkeys(lane.owner for lane in self.values()))

    def inner(self, lane: Lane):
        """The host's inner model of a lane."""
        return self.guider.inner_model if lane.owner is self.base else lane.owner.model

    # --- what the host asks for and hands over ----------------------------------------------------------------------

    def name(self, cond: Conds) -> Hashable:
        """What the host asks for with one of its conditionings: a prediction of the recipe, or something of its own."""
        host = self.guider.conds
        if same(cond, host.get(self.conditionings.negative)) or (
                self.only_unconditional and same(cond, host.get("positive"))):
            return self.recipe.baseline
        return Prediction(BASE, POSITIVE) if same(cond, host.get("positive")) else id(cond)

    def own_role(self, place: int) -> int:
        """The role of what the host asks for: its place in the host's list."""
        return UNGUIDED if self.only_unconditional else place

    def handed(self, args: dict) -> dict[Hashable, Tensor]:
        """The predictions that the host hands to post-CFG functions; what it guides away from is the baseline."""
        handed = {self.name(args[kind]): args[f"{kind}_denoised"]
                  for kind in ("cond", "uncond") if args.get(kind) is not None}
        if args.get("uncond") is not None and self.conditionings.negative == "negative":
            handed.setdefault(self.recipe.baseline, args["uncond_denoised"])
        return handed

    def take_along(self, conds: list[Conds | None]) -> None:
        """Note what a pack adds to the sampler's conditionings during a step: all rows on its network get it, too."""
        self._added = added_to([c for part in conds for c in part or ()], self.guider.conds.values())

    # --- what the recipe asks for -----------------------------------------------------------------------------------

    def leader(self, name: Hashable) -> str:
        """The lane whose batch a prediction belongs to."""
        return self[name.model].leader if isinstance(name, Prediction) else BASE

    def conds(self, p: Prediction) -> Conds | None:
        """The processed conditioning of a prediction, or None if there is none."""
        pair, kind = self.conditionings.places[p.conditioning]
        lane = self[p.model]
        conds = (self.guider.conds if p.model == BASE and pair == SAMPLER else lane.pairs[pair]).get(kind)
        return with_added(conds, self._added) if conds and self._added and lane.owner is self.base else conds

    def row(self, p: Prediction) -> Row:
        """A prediction as a row of a batch.

        An unconditional prediction is guided towards where its model carries patches of its own that may tell roles
        apart: an image prompt acts on the guided role.
        """
        lane = self[p.model]
        guided = self.conditionings.places[p.conditioning][1] == "positive" or (
            self[lane.leader].patched and any(g.prediction == p for g in self.recipe.guidances))
        return Row(self.conds(p), GUIDED if guided else UNGUIDED, None if lane.adapter is None else p.model)

    def batches(self, leader: str, rows: dict[Hashable, Row]) -> list[dict[Hashable, Row]]:
        """The rows of a lane by batch: all in one, or each of the recipe's in a pair where patches need that."""
        if not self[leader].in_pairs:
            return [rows]
        added = [{p: row} | self._partner(p, row) for p, row in rows.items() if row.added]
        return [*added, {name: row for name, row in rows.items() if not row.added}]

    def _partner(self, p: Prediction, row: Row) -> dict[Hashable, Row]:
        """What the host would put beside a prediction: the other one of its pair."""
        pair, _ = self.conditionings.places[p.conditioning]
        of_sampler = UNCONDITIONAL if row.role == GUIDED else POSITIVE
        other = of_sampler if pair == SAMPLER else beside(pair) if row.role == GUIDED else pair
        conds = self.conds(replace(p, conditioning=other))
        return {("partner", p): replace(row, conds=conds, role=1 - row.role)} if conds else {}
