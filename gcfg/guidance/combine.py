"""The equation: a baseline and guidances in, one denoised prediction out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .plan import Plan, Term
from .recipe import Prediction
from .shaping import Momentum, balanced, damped_scale, project, rescale_factor, shape, zero_star_reference


def combine(plan: Plan, predictions: Mapping[Prediction, Tensor], x: Tensor, sigma: float, *,
            masks: Mapping[int, Tensor] | None = None, momentum: Momentum | None = None,
            start: Tensor | None = None, observe: Callable[[Term, Tensor], None] | None = None) -> Tensor:
    """GCFG (arXiv 2312.08195) in denoised space: ``D = D_0 + sum_i w_i M_i shape_i(D_i - R_i)``.

    Args:
        plan: the terms of this step.
        predictions: denoised predictions of shape (B, ...), at least those that the plan asks for.
        x: the noisy latent of this step, (B, ...).
        sigma: its noise level.
        masks: spatial masks by index of the guidance, broadcastable to x; none means everywhere.
        momentum: the running sums of this run; needed where a guidance has momentum.
        start: what the guidances are added to, if not the baseline (a host's own guidance result).
        observe: called with each term and what it adds, (B, ...).

    With no term the result is D_0; with one term on the base model it equals classifier-free guidance to the bit.
    Terms with a balance come last: the control guidance is what all others and the host's own add together.
    """
    if plan.baseline_cancels:  # any value gives the same sum; zero needs no forward pass
        predictions = {**predictions, plan.baseline: torch.zeros_like(x)}
    denoised = predictions[plan.baseline] if start is None else start
    control = None
    for term in sorted(plan.terms, key=lambda term: term.guidance.shaping.balance > 0):
        added = contribution(term, plan, predictions, x, sigma, momentum)
        mask = masks.get(term.index) if masks else None
        if term.guidance.shaping.balance > 0:
            control = denoised - predictions[plan.baseline] if control is None else control
            added = balanced(added, control, abs(term.scale) * term.guidance.shaping.balance, mask)
        if mask is not None:
            added = added * mask
        denoised = denoised + added
        if observe is not None:
            observe(term, added)
    return denoised


def contribution(term: Term, plan: Plan, predictions: Mapping[Prediction, Tensor], x: Tensor, sigma: float,
                 momentum: Momentum | None = None) -> Tensor:
    """What one guidance adds, without its mask: ``w shape(D - R)`` plus the shift of the reference, if any."""
    guidance, shaping = term.guidance, term.guidance.shaping
    prediction, reference = predictions[guidance.prediction], predictions[guidance.reference]
    if shaping.is_neutral and guidance.perpendicular_to is None:
        return (prediction - reference) * term.scale

    origin = zero_star_reference(x, prediction, reference) if shaping.zero_star else reference
    delta = prediction - origin
    if guidance.perpendicular_to is not None:
        towards, measured_from = (predictions[p] for p in guidance.perpendicular_to)
        delta = project(delta, towards - measured_from)[1]
    if shaping.momentum != 0.0:
        delta = momentum.update(term.index, sigma, delta, shaping.momentum)
    baseline = predictions[plan.baseline] if shaping.norm_limit > 0 else None
    scale = term.scale
    if shaping.ratio_damping > 0:
        scale = damped_scale(scale, x, prediction, reference, shaping.ratio_damping)
    guided = origin + scale * shape(delta, prediction, baseline, shaping)
    if shaping.rescale > 0:
        guided = guided * rescale_factor(guided, prediction, shaping.rescale)
    return guided - reference
