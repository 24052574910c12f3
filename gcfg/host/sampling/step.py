"""One evaluation of a recipe: rides on the host's own batch, adds what is missing, and combines."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ...guidance import BASE, UNCONDITIONAL, Prediction, combine, plan
from ...guidance.plan import in_zero_init
from . import tracing
from .chain import POSITIVE
from .predict import GUIDED, UNGUIDED, Row, coverage, is_active, predict
from .run import Run

STEP = "gcfg_step"
"""Under this key a step's model options hold the step."""


class Step:
    """What a recipe does at one call of a sampler's model, at noise level ``timestep`` (B,) and latent ``x`` (B, ...).

    The host computes its own guidance first (positive and unconditional prediction, other packs' CFG functions) and
    hands its result to the post-CFG functions. This step stands first among these and adds the recipe's guidances.
    """

    def __init__(self, run: Run, x: Tensor, timestep: Tensor):
        self.run, self.x, self.timestep = run, x, timestep
        self.sigma = float(timestep[0])
        self.predictions: dict[Hashable, Tensor] = {}
        self.in_host_batch = False
        self.reused: set[Prediction] = set()
        used = {p for g in run.recipe.guidances for p in g.uses}
        absent = {p for p in used if not is_active(run.processed(p) or [], self.sigma)}
        self.zero_init = in_zero_init(run.recipe, self.sigma, run.sigmas)
        self.plan = plan(run.recipe, self.sigma, run.progress, added=True, absent=used if self.zero_init else absent)

    def options(self, model_options: dict) -> dict:
        """The model options with this step in them."""
        post_cfg = [self.finish, *model_options.get("sampler_post_cfg_function", [])]
        options = {**model_options, STEP: self, "sampler_post_cfg_function": post_cfg}
        if Prediction(BASE, UNCONDITIONAL) in self.plan.predictions:
            options["disable_cfg1_optimization"] = True
        return options

    # --- the host's own batch -----------------------------------------------------------------------------------

    def calc_cond_batch(self, executor, model, conds: list, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
        """The host's batch, and in it what the recipe needs of the same weights; equal rows run once."""
        if self.in_host_batch or model is not self.run.guider.inner_model or "context_handler" in options:
            return executor(model, conds, x, timestep, options)
        self.in_host_batch = True
        keys = [None if cond is None else self.key_of(cond) for cond in conds]
        rows: dict[Hashable, Row] = {}
        for position, (key, cond) in enumerate(zip(keys, conds, strict=True)):
            if isinstance(key, Prediction) and key.model != BASE:
                self._evaluate([key], options)
            elif key is not None:
                rows.setdefault(key, Row(cond, position))
        for p in self._missing(BASE):
            rows.setdefault(p, self._row(p))
        reused = [key for key in rows if self._reusable(key)] if self.run.recipe.baseline in keys else []
        for key in reused:
            rows.pop(key)
        network = self.run.networks[self.run.base]
        with self.run.spec.trace.timed(BASE, x.device):
            found = predict(model, list(rows.values()), x, timestep, options, network, executor)
        self._keep(dict(zip(rows, found, strict=True)), reused)
        return [torch.zeros_like(x) if key is None else self.predictions[key] for key in keys]

    def key_of(self, cond: list[dict]) -> Hashable:
        """What the host asks for with one of its conditionings: a prediction of the recipe, or something of its own."""
        host = self.run.guider.conds
        if cond is host.get("negative") or (self.run.only_unconditional and cond is host.get("positive")):
            return self.run.recipe.baseline
        return Prediction(BASE, POSITIVE) if cond is host.get("positive") else id(cond)

    # --- after the host's guidance ------------------------------------------------------------------------------

    def finish(self, args: dict) -> Tensor:
        """Post-CFG function: the host's result and the recipe's guidances, checked for NaN."""
        for kind in ("cond", "uncond"):  # where another pack's function replaced the host's batch
            if args.get(kind) is not None:
                self.predictions.setdefault(self.key_of(args[kind]), args[f"{kind}_denoised"])
        self.in_host_batch = True
        for name in self.run.lanes:
            self._evaluate(self._missing(name), args["model_options"])
        added: dict[int, tuple[float, Tensor]] = {}
        denoised = combine(self.plan, self.predictions, self.x, self.sigma, masks=self._masks(),
                           momentum=self.run.momentum, start=args["denoised"],
                           observe=lambda term, value: added.update({term.index: (term.scale, value)}))
        tracing.record(self, args, added)
        self._check_finite(denoised)
        self.predictions.clear()  # the options that hold this step also hold a reference to it
        return self.x if self.zero_init else denoised

    def _missing(self, leader: str) -> list[Prediction]:
        return [p for p in self.plan.predictions
                if self.run.lanes[p.model].leader == leader and p not in self.predictions]

    def _row(self, p: Prediction) -> Row:
        seen_as = UNGUIDED if p.conditioning == UNCONDITIONAL else GUIDED
        return Row(self.run.processed(p), seen_as, None if self.run.lanes[p.model].adapter is None else p.model)

    def _evaluate(self, wanted: list[Prediction], base_options: dict) -> None:
        """Predict on one set of weights, in one batch where the memory allows."""
        if self.run.recipe.baseline in self.predictions:
            self._keep({}, [p for p in wanted if self._reusable(p)])
        wanted = [p for p in wanted if p not in self.predictions]
        if not wanted:
            return
        lane = self.run.lanes[self.run.lanes[wanted[0].model].leader]
        options = base_options if lane.leader == BASE else lane.options
        device = lane.owner.load_device
        with self.run.spec.trace.timed(lane.leader, device):
            found = predict(self.run.inner(lane), [self._row(p) for p in wanted], self.x.to(device),
                            self.timestep.to(device), options, self.run.networks[lane.owner])
        self._keep({p: value.to(self.x.device) for p, value in zip(wanted, found, strict=True)})

    def _reusable(self, key: Hashable) -> bool:
        """True if a prediction may be taken from its last offset; the baseline is always evaluated."""
        reuse = self.run.reuse
        return reuse is not None and key != self.run.recipe.baseline and reuse.ready(key, self.sigma)

    def _keep(self, found: dict[Hashable, Tensor], reused: Sequence[Prediction] = ()) -> None:
        """Keep what was evaluated, and fill in what is reused."""
        self.predictions.update(found)
        baseline = self.predictions.get(self.run.recipe.baseline)
        if self.run.reuse is None or baseline is None:
            return
        self.reused.update(reused)
        ours = {p: value for p, value in found.items() if isinstance(p, Prediction) and p != self.run.recipe.baseline}
        self.predictions.update(self.run.reuse.settle(ours, reused, self.sigma, baseline))

    def _masks(self) -> dict[int, Tensor]:
        """Where each guidance acts: its own mask, and where its predictions exist at all."""
        masks = {}
        for term in self.plan.terms:
            g = term.guidance
            parts = [self.run.masks[g.mask]] if g.mask is not None else []
            for p in {*g.uses} - {self.run.recipe.baseline}:
                parts += [c for c in [coverage(self.run.processed(p), self.x, self.timestep)] if c is not None]
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
