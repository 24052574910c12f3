"""What the host's runs leave in a trace, and where to find the trace of a MODEL or a GUIDER."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from torch import Tensor

from ...guidance import BASE, Guidance, Prediction
from ...guidance.trace import Trace
from .. import KEY
from .chain import POSITIVE

HOST = -1
"""Key of the guidance that the host computes itself, from its positive conditioning and cfg."""


def begin(run) -> None:
    """Empty the trace of a run that starts sampling, and say what it will record."""
    guidances = dict(enumerate(run.recipe.guidances))
    if not run.lanes.only_unconditional:
        first = getattr(run.guider, "first", None)
        own = first if isinstance(first, Guidance) else Guidance(Prediction(BASE, POSITIVE), name="positive (cfg)")
        guidances = {HOST: own, **guidances}
    used = {p for g in guidances.values() for p in g.uses} | {run.recipe.baseline}
    names = {BASE: BASE}
    for g in guidances.values():
        for p in g.uses:
            names.setdefault(run.lanes[p.model].leader, f"model of {g.label}")
    run.spec.trace.begin(guidances, run.progress, len(used), names)


def record(step, host: dict, added: dict[int, tuple[float, Tensor]]) -> None:
    """Record a step after it was combined.

    Args:
        host: what the host hands to post-CFG functions.
        added: scale and contribution of each guidance of the recipe that acted.
    """
    baseline = step.predictions.get(step.plan.baseline)
    guided = HOST in step.run.spec.trace.guidances and host.get("cond_scale", 0.0) != 0.0
    if guided and baseline is not None:
        added = {HOST: (host["cond_scale"], host["denoised"] - baseline), **added}
    count = sum(isinstance(p, Prediction) for p in step.predictions)
    step.run.spec.trace.record(step.sigma, baseline, added, count - len(step.reused), len(step.reused))


def trace_of(source: ModelPatcher | CFGGuider) -> Trace:
    """The trace of the last run through a MODEL or GUIDER that carries guidances.

    Raises:
        ValueError: it carries none, or nothing has been sampled with it.
    """
    spec = getattr(source, "model_patcher", source).get_attachment(KEY)
    if spec is None:
        raise ValueError("This guider or model carries no guidances; connect the output of GCFG Guider or of Apply "
                         "GCFG to Model, the same that goes into the sampler.")
    if not spec.trace.calls:
        raise ValueError("Nothing has been sampled with this guider or model yet; connect the latent that its sampler "
                         "gives, so that this node runs after it.")
    return spec.trace
