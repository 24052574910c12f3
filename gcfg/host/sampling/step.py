"""One step of a recipe: what the host asks for and what the recipe needs, predicted together and added up.

    predict_noise        the host's prediction, with this step in its way:
      calc_cond_batch      its batch, joined by the rows that the plan of this noise level needs;
        predict              each set of weights and patches once, the base's last (predict.py);
      finish               first of its post-CFG functions: D = the host's result + the plan's terms (combine).

What lasts for a run is in run.py; whose weights, patches and conditionings a row has, in lanes/.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from ...guidance import BASE, UNCONDITIONAL, Prediction, combine, plan
from ...guidance.plan import in_zero_init
from . import tracing
from .batch.masks import coverage
from .batch.predict import predict
from .batch.row import Row
from .batch.windows import Windows
from .chain import POSITIVE
from .lanes.conditionings import is_active
from .run import Run

STEP = "gcfg_step"
"""Under this key a step's model options hold the step."""


class Step:
    """A recipe at one call of a sampler's model, at noise level ``timestep`` (B,) and latent ``x`` (B, ...).

    The host computes its own guidance (positive and unconditional prediction, other packs' CFG functions) and hands
    the result to the post-CFG functions. This step rides on the host's batch with what the recipe needs, stands first
    among the post-CFG functions, and adds the guidances there.
    """

    def __init__(self, run: Run, x: Tensor, timestep: Tensor):
        self.run, self.x, self.timestep, self.sigma = run, x, timestep, float(timestep[0])
        self.predictions: dict[Hashable, Tensor] = {}
        self.reused: set[Prediction] = set()
        self.asked = self.finished = False
        if x.shape != run.shape:
            run.begin(x)
        used = {p for g in run.recipe.guidances for p in g.uses}
        absent = {p for p in used if not is_active(run.lanes.conds(p) or [], self.sigma)}
        self.zero_init = run.from_noise and in_zero_init(run.recipe, self.sigma, run.sigmas)
        self.plan = plan(run.recipe, self.sigma, run.progress, added=True, absent=used if self.zero_init else absent)

    def predict_noise(self, executor, model_options: dict, *args, **kwargs) -> Tensor:
        """The sampler's prediction with the guidances, also by a guider that calls no post-CFG functions."""
        options = {**model_options, STEP: self,
                   "sampler_post_cfg_function": [self.finish, *model_options.get("sampler_post_cfg_function", [])]}
        if "context_handler" in options:
            options["context_handler"] = Windows(options["context_handler"], self.calc_cond_batch)
        if Prediction(BASE, UNCONDITIONAL) in self.plan.predictions:
            options["disable_cfg1_optimization"] = True
        denoised = executor(self.x, self.timestep, options, *args, **kwargs)
        return denoised if self.finished else self.finish({"denoised": denoised, "model_options": options})

    def calc_cond_batch(self, executor, model, conds: list, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
        """The host's batch, and in it what the recipe needs of the same weights; equal rows run once."""
        if self.asked or model is not self.run.guider.inner_model or x.shape != self.x.shape:
            return executor(model, conds, x, timestep, options)  # a patch's own call, another model, a pack's window
        self.asked = True
        self.run.lanes.take_along(conds)
        names = [None if cond is None else self.run.lanes.name(cond) for cond in conds]
        own: dict[Hashable, Row] = {}
        for place, (name, cond) in enumerate(zip(names, conds, strict=True)):
            if cond is not None:
                own.setdefault(name, Row(cond, self.run.lanes.own_role(place), added=False))
        baseline, positive = self.run.recipe.baseline, Prediction(BASE, POSITIVE)
        if baseline in own and positive not in self.plan.predictions and self.run.is_unguided(self.sigma, options):
            own.pop(positive, None)  # the host will multiply its difference from the baseline by 0
        self.predict(own, options, batch=executor)
        return [torch.zeros_like(x) if cond is None else self.predictions[name if name in own else baseline].clone()
                for name, cond in zip(names, conds, strict=True)]

    def finish(self, args: dict) -> Tensor:
        """Post-CFG function: the host's result and the recipe's guidances, checked for NaN."""
        self.asked = self.finished = True
        for name, value in self.run.lanes.handed(args).items():
            self.predictions.setdefault(name, value)
        self.predict({}, args["model_options"])
        added: dict[int, tuple[float, Tensor]] = {}
        denoised = combine(self.plan, self.predictions, self.x, self.sigma, masks=self._masks(),
                           momentum=self.run.momentum, start=args["denoised"],
                           observe=lambda term, value: added.update({term.index: (term.scale, value)}))
        tracing.record(self, args, added)
        self._check_finite(denoised)
        self.predictions.clear()  # the options that hold this step also hold a reference to it
        return self.x if self.zero_init else denoised

    def predict(self, own: dict[Hashable, Row], options: dict, **batch) -> None:
        """Evaluate what is missing, one batch for each lane that leads one.

        The base's comes last: patches that keep something of a batch until the post-CFG functions keep it of that.

        Args:
            own: rows that the host itself asks for; the unconditional is left to it until it is done.
            batch: the executor of the wrapper around the host's batch, as ``batch``.
        """
        lanes, left_to_host = self.run.lanes, {Prediction(BASE, UNCONDITIONAL)} if own else set()
        wanted = {p: lanes.row(p) for p in self.plan.predictions if p not in left_to_host}
        wanted |= {name: lanes.row(name) if lanes.leader(name) != BASE else row for name, row in own.items()}
        wanted = {name: row for name, row in wanted.items() if name not in self.predictions}
        reused = [name for name in wanted if self._reusable(name, wanted)]
        found = {}
        for leader in lanes.leaders:
            rows = {name: wanted[name] for name in wanted if lanes.leader(name) == leader and name not in reused}
            for part in filter(None, lanes.batches(leader, rows)):
                found |= zip(part, self._batch(leader, list(part.values()), options, **batch), strict=True)
        found = {name: found[name].to(self.x.device) for name in wanted if name in found}  # only now: no device waits
        self.predictions |= found
        self._settle(found, reused)

    def _batch(self, leader: str, rows: list[Row], base_options: dict, **batch) -> list[Tensor]:
        """The predictions (B, ...) of some rows on the weights of one lane, on its device."""
        lane = self.run.lanes[leader]
        device = lane.owner.load_device
        options, batch = (base_options, batch) if leader == BASE else (lane.options, {})
        with self.run.spec.trace.timed(leader, device):
            return predict(self.run.lanes.inner(lane), rows, self.x.to(device), self.timestep.to(device), options,
                           self.run.networks[lane.owner], in_pairs=lane.in_pairs, **batch)

    # --- fewer passes: predictions of earlier steps ----------------------------------------------------------------

    def _reusable(self, name: Hashable, wanted: dict) -> bool:
        """True if a prediction may be taken from its last offset; the baseline has none and is always evaluated."""
        reuse, baseline = self.run.reuse, self.run.recipe.baseline
        known = baseline in wanted or baseline in self.predictions
        return reuse is not None and known and reuse.ready(name, self.sigma)

    def _settle(self, found: dict[Hashable, Tensor], reused: list[Prediction]) -> None:
        """Keep the offsets of what was evaluated, and fill in what is reused."""
        baseline = self.predictions.get(self.run.recipe.baseline)
        if self.run.reuse is None or baseline is None:
            return
        self.reused.update(reused)
        ours = {p: value for p, value in found.items() if isinstance(p, Prediction) and p != self.run.recipe.baseline}
        self.predictions |= self.run.reuse.settle(ours, reused, self.sigma, baseline)

    # --- where guidances act, and what went wrong ------------------------------------------------------------------

    def _masks(self) -> dict[int, Tensor]:
        """Where each guidance acts: its own mask, and where its predictions exist at all."""
        masks = {}
        for term in self.plan.terms:
            g = term.guidance
            parts = [self.run.masks[g.mask]] if g.mask is not None else []
            for p in {*g.uses} - {self.run.recipe.baseline}:
                parts += [c for c in [coverage(self.run.lanes.conds(p), self.x, self.timestep)] if c is not None]
            if parts:
                masks[term.index] = torch.stack(torch.broadcast_tensors(*parts)).prod(dim=0)
        return masks

    def _check_finite(self, denoised: Tensor) -> None:
        if torch.isfinite(denoised).all():
            return
        bad = {p for p, value in self.predictions.items() if isinstance(p, Prediction) and not value.isfinite().all()}
        users = [f"'{g.label}'" for g in self.run.recipe.guidances if bad.intersection(g.uses)]
        users += [f"the {p.conditioning} prediction of the base model" for p in bad if p.model == BASE
                  and p.conditioning in (POSITIVE, UNCONDITIONAL)]
        raise RuntimeError(f"NaN or infinity at noise level {self.sigma:.4g} from {', '.join(users) or 'the sum'}. "
                           "Run this model in another precision (fp32 or bf16), or lower its scale.")
