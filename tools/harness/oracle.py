"""Sampling written out by hand: each prediction by the host alone, one model at a time, then a plain Euler loop."""

from collections.abc import Callable

import comfy.sample
import comfy.samplers
import torch


def denoised(model, x, conditioning, sigma: float) -> torch.Tensor:
    """One prediction of a MODEL for the noisy latent x (B, C, H, W), in the space in which the host samples."""
    found = []

    def once(wrapped, noise, sigmas, extra_args, **_):
        found.append(wrapped(x, sigmas[:1].expand(len(x)), **extra_args))
        return found[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    empty = torch.zeros_like(x)
    guider.sample(empty, empty, comfy.samplers.KSAMPLER(once), torch.tensor([sigma, 0.0]), disable_pbar=True)
    return found[0]


def euler(model, step: Callable[[torch.Tensor, float], torch.Tensor], latent: dict, steps: int = 4,
          scheduler: str = "karras", seed: int = 5) -> torch.Tensor:
    """The latent of a KSampler (euler) whose model is ``step(x, sigma)``, a denoised prediction; from pure noise."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    noise = comfy.sample.prepare_noise(latent["samples"], seed)
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), max_denoise=True)
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        prediction = step(x, sigma)
        x = x + (x - prediction) * ((after - sigma) / sigma)
    return model.model.process_latent_out(sampling.inverse_noise_scaling(sigmas[-1], x))
