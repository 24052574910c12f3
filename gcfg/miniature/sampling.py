"""Sampling in miniature: a recipe and the models it names in, pictures out, by the method's own plan and combine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..guidance import Momentum, Performance, Prediction, Progress, Recipe, Reuse, combine, plan

ANGLE = math.atan(40.0)
"""The noise level as an angle, atan(sigma), runs from here to 0."""
STEPS = 10

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A denoiser D(x, sigma, caption), as ``model.Denoiser``."""


def sigma_at(progress: float) -> float:
    """The noise level at a sampling progress, equal parts of the angle (the cosine schedule, arXiv 2102.09672)."""
    return math.tan(ANGLE * (1.0 - min(max(progress, 0.0), 1.0)))


def noise_levels(steps: int, low: float = 0.05, rho: float = 7.0) -> list[float]:
    """Levels of a sampling run, from the highest to ``low`` and then 0 (arXiv 2206.00364, equation 5)."""
    high, low = sigma_at(0.0) ** (1.0 / rho), low ** (1.0 / rho)
    return [*((high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)), 0.0]


PROGRESS = Progress(sigma_at, sigma_at(0.0))


@torch.no_grad()
def predict(models: Mapping[str, Model], wanted: Sequence[Prediction], captions: Mapping[str, Tensor],
            x: Tensor, sigma: float) -> dict[Prediction, Tensor]:
    """Denoised predictions (B, 3, 16, 16) of x (B, 3, 16, 16), one batched pass a model.

    Args:
        captions: by name of the conditioning (B, 3), or (3,) for all samples.
    """
    done = {}
    for name in dict.fromkeys(p.model for p in wanted):
        group = [p for p in wanted if p.model == name]
        caption = torch.cat([captions[p.conditioning].expand(len(x), 3) for p in group])
        rows = torch.full((len(x) * len(group),), sigma)
        denoised = models[name](x.repeat(len(group), 1, 1, 1), rows, caption)
        done.update(zip(group, denoised.chunk(len(group)), strict=True))
    return done


def denoise(models: Mapping[str, Model], recipe: Recipe, captions: Mapping[str, Tensor], x: Tensor,
            sigma: float, momentum: Momentum, reuse: Reuse | None = None) -> Tensor:
    """The combined denoised prediction of a recipe at one noise level.

    Args:
        reuse: predictions kept from other noise levels; all are evaluated if None.
    """
    step = plan(recipe, sigma, PROGRESS, added=reuse is not None)
    wanted = dict.fromkeys((step.baseline, *step.predictions)) if reuse else step.all_predictions
    reused = [p for p in wanted if p != step.baseline and reuse.ready(p, sigma)] if reuse else []
    found = predict(models, [p for p in wanted if p not in reused], captions, x, sigma)
    if reuse:
        baseline = found[step.baseline]
        others = {p: found[p] for p in wanted if p in found and p != step.baseline}
        found |= reuse.settle(others, reused, sigma, baseline)
    return combine(step, found, x, sigma, momentum=momentum)


def sample(models: Mapping[str, Model], recipe: Recipe, captions: Mapping[str, Tensor], noise: Tensor,
           steps: int = STEPS, watch: Callable[[Tensor, float], None] | None = None,
           performance: Performance | None = None) -> Tensor:
    """Pictures (B, 3, 16, 16) from unit noise (B, 3, 16, 16) by DPM-Solver++(2M) (arXiv 2211.01095), deterministic.

    Args:
        watch: called with x and sigma before each step.
        performance: which evaluations to save; none if None.
    """
    sigmas = noise_levels(steps)
    x, previous, momentum = noise * sigmas[0], None, Momentum()
    reuse = Reuse(performance, sigmas) if performance and performance.reuses else None
    for i in range(steps):
        if watch:
            watch(x, sigmas[i])
        denoised = denoise(models, recipe, captions, x, sigmas[i], momentum, reuse)
        step = denoised
        if previous is not None and sigmas[i + 1] > 0.0:
            h, h_last = math.log(sigmas[i] / sigmas[i + 1]), math.log(sigmas[i - 1] / sigmas[i])
            step = denoised + (denoised - previous) * h / (2.0 * h_last)
        x = step + (x - step) * sigmas[i + 1] / sigmas[i]
        previous = denoised
    return x


def sample_in_batches(models: Mapping[str, Model], recipe: Recipe, captions: Mapping[str, Tensor],
                      noise: Tensor, batch: int = 250, steps: int = STEPS,
                      performance: Performance | None = None) -> Tensor:
    """``sample`` for many pictures, a few hundred at a time so that the activations stay in the cache."""
    def part(rows: slice) -> Tensor:
        own = {name: caption[rows] if caption.ndim == 2 else caption for name, caption in captions.items()}
        return sample(models, recipe, own, noise[rows], steps, performance=performance)

    return torch.cat([part(slice(i, i + batch)) for i in range(0, len(noise), batch)])
