"""Training objectives: one function a formula. Losses are per sample, (B,), float32; reductions are over the rest.

Noisy latents are x = alpha(sigma) x0 + s(sigma) n. A network's output enters the denoised prediction affinely,
D = a(sigma, x) + b(sigma) output, in every parameterisation (eps, v, flow), so one loss serves them all: the output
that would give D = x0 is the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .semantic import masked_squared_error

Noising = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(sigma (B,), noise, x0) -> x"""
Denoising = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(sigma (B,), output, x) -> denoised"""


def target(denoised: Denoising, sigma: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """The output that denoises x to x0: the noise for eps, v for v (arXiv 2202.00512), noise - x0 for flow."""
    a, b = denoised(sigma, torch.zeros_like(x), x), slope(denoised, sigma, x)
    return (x0 - a) / b


def slope(denoised: Denoising, sigma: Tensor, like: Tensor) -> Tensor:
    """b of D = a + b output, (B, 1, 1, 1)."""
    one = torch.ones((len(sigma), *[1] * (like.ndim - 1)), device=like.device, dtype=like.dtype)
    return denoised(sigma, one, torch.zeros_like(one))


def squared_error(output: Tensor, wanted: Tensor) -> Tensor:
    """The diffusion loss |output - target|^2, mean per sample: (B, ...) -> (B,) (arXiv 2006.11239, equation 14)."""
    return (output.float() - wanted.float()).square().flatten(1).mean(1)


def signal_to_noise(noised: Noising, sigma: Tensor) -> Tensor:
    """SNR = alpha^2 / s^2 at sigma (B,), (B,)."""
    one, zero = torch.ones_like(sigma).view(-1, 1, 1, 1), torch.zeros_like(sigma).view(-1, 1, 1, 1)
    return (noised(sigma, zero, one) / noised(sigma, one, zero)).square().flatten()


def min_snr_weight(snr: Tensor, b: Tensor, gamma: float) -> Tensor:
    """Weight of the squared error: min(SNR, gamma) on x0 (arXiv 2303.09556, equation 8), times b^2 on the output.

    For eps this is min(SNR, gamma) / SNR, for v min(SNR, gamma) / (SNR + 1). The paper uses gamma = 5.
    """
    return snr.clamp(max=gamma) * b.flatten().square()


def undistilled(output: Tensor, base: Tensor, cfg: float) -> Tensor:
    """What a guidance-distilled network predicts without its guidance: (v + (cfg - 1) v_uncond) / cfg.

    v_guided = v_uncond + cfg (v - v_uncond), solved for v (diffusion-pipe, pull request 533). Trained to this, the
    network keeps its distillation: its own output stays the guided one.

    Args:
        output: of the network in training.
        base: of the frozen base under the empty prompt.
        cfg: the guidance that was distilled into it, above 1.
    """
    return (output + (cfg - 1.0) * base) / cfg


def logit_normal(level: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) as logit-normal ones, which favour the middle (arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(torch.special.ndtri(level.clamp(1e-6, 1.0 - 1e-6)))


def offset_noise(noise: Tensor, offset: Tensor, strength: float) -> Tensor:
    """Noise with a random mean per channel, which lets a model learn dark and bright pictures (Guttenberg, 2023).

    Args:
        noise: (B, C, H, W), normal.
        offset: (B, C, 1, 1), normal.
        strength: 0.05 to 0.1 are usual; 0 changes nothing.
    """
    return noise + strength * offset if strength else noise


@dataclass(frozen=True)
class DiffusionLoss:
    """The loss of a network on latents.

    Attributes:
        predict: (x, sigma) -> output of the network.
        noised: how the model's process adds noise.
        denoised: how its parameterisation turns an output into the denoised latent.
        sigmas: the noise levels of training, (n,); a level is chosen uniformly.
        min_snr: gamma of ``min_snr_weight``, 0 for none.
    """

    predict: Callable[[Tensor, Tensor], Tensor]
    noised: Noising
    denoised: Denoising
    sigmas: Tensor
    min_snr: float = 0.0

    def __call__(self, x0: Tensor, noise: Tensor, level: Tensor, mask: Tensor | None = None) -> Tensor:
        """Losses (B,) of latents x0 (B, C, H, W) with this noise at ``level`` (B,) in [0, 1) of the noise levels.

        With a ``mask`` (B, 1, H, W) they are measured inside it.
        """
        sigma = self.sigmas[(level * len(self.sigmas)).long()]
        x = self.noised(sigma, noise, x0)
        output, wanted = self.predict(x, sigma), target(self.denoised, sigma, x, x0)
        losses = squared_error(output, wanted) if mask is None else masked_squared_error(output, wanted, mask)
        if self.min_snr > 0.0:
            losses = losses * min_snr_weight(signal_to_noise(self.noised, sigma), slope(self.denoised, sigma, x),
                                             self.min_snr)
        return losses
