"""Sampling with the narrow models by the pack's own plan and combine: what ComfyUI makes of the wide ones, four times
faster. DPM-Solver++(2M) on the host's "simple" levels, from the host's starting noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gcfg.guidance import Momentum, Prediction, Progress, Recipe, combine, plan

from .unet import UNet, alphas_cumprod

STEPS = 16
SIGMAS = ((1 - alphas_cumprod()) / alphas_cumprod()).sqrt()
"""(1000,), rising."""


def levels(steps: int = STEPS) -> list[float]:
    """The noise levels of a run, the last 0."""
    stride = len(SIGMAS) / steps
    return [float(SIGMAS[-(1 + int(i * stride))]) for i in range(steps)] + [0.0]


def _sigma_at(progress: float) -> float:
    """The host's ``percent_to_sigma``."""
    if progress <= 0:
        return 1e9
    place = (1 - progress) * (len(SIGMAS) - 1)
    return 0.0 if progress >= 1 else float(SIGMAS[round(place)])


class Denoiser:
    """D(x, sigma, features) of a narrow UNet, in bfloat16."""

    def __init__(self, network: UNet):
        self.network = network.eval().requires_grad_(False)

    def __call__(self, x: Tensor, sigma: float, features: Tensor) -> Tensor:
        time = torch.full((len(x),), int((SIGMAS.log() - math.log(sigma)).abs().argmin()))
        with torch.autocast("cpu", torch.bfloat16):
            noise = self.network(x / math.sqrt(1 + sigma**2), time, features).float()
        return x - sigma * noise


def predict(models: Mapping[str, Denoiser], wanted: Sequence[Prediction], texts: Mapping[str, Tensor], x: Tensor,
            sigma: float) -> dict[Prediction, Tensor]:
    """Denoised predictions of x (B, 4, 8, 8), one pass a model; ``texts`` (B, 77, 64) or (1, 77, 64) by name."""
    done = {}
    for name in dict.fromkeys(p.model for p in wanted):
        group = [p for p in wanted if p.model == name]
        features = torch.cat([texts[p.conditioning].expand(len(x), -1, -1) for p in group])
        denoised = models[name](x.repeat(len(group), 1, 1, 1), sigma, features)
        done.update(zip(group, denoised.chunk(len(group)), strict=True))
    return done


@torch.no_grad()
def sample(models: Mapping[str, Denoiser], recipe: Recipe, texts: Mapping[str, Tensor], noise: Tensor,
           steps: int = STEPS) -> Tensor:
    """Latents of unit size (B, 4, 8, 8) from unit noise of that shape."""
    sigmas, previous, momentum = levels(steps), None, Momentum()
    progress = Progress(_sigma_at, float(SIGMAS[-1]))
    x = noise * math.sqrt(1 + sigmas[0] ** 2)
    for i in range(steps):
        step = plan(recipe, sigmas[i], progress)
        found = predict(models, step.all_predictions, texts, x, sigmas[i])
        denoised = combine(step, found, x, sigmas[i], momentum=momentum)
        ahead = denoised
        if previous is not None and sigmas[i + 1] > 0:
            h, h_last = math.log(sigmas[i] / sigmas[i + 1]), math.log(sigmas[i - 1] / sigmas[i])
            ahead = denoised + (denoised - previous) * h / (2 * h_last)
        x = ahead + (x - ahead) * sigmas[i + 1] / sigmas[i]
        previous = denoised
    return x


def noise_of(seed: int, shape: tuple[int, ...] = (4, 8, 8)) -> Tensor:
    """The host's starting noise of a seed for one picture, (1, 4, 8, 8)."""
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
