"""Targets of the three parameterisations, weights, noise offset."""

import pytest
import torch

from gcfg.training.losses import objectives

SIGMA = torch.tensor([0.05, 0.7, 9.0])
X0, NOISE = torch.randn((2, 3, 4, 8, 8), generator=torch.Generator().manual_seed(0)).unbind()


def column(sigma):
    return sigma.view(-1, 1, 1, 1)


def ve(sigma, noise, x0):
    return x0 + column(sigma) * noise


def flow(sigma, noise, x0):
    return (1 - column(sigma)) * x0 + column(sigma) * noise


def eps_denoised(sigma, output, x):
    return x - column(sigma) * output


def v_denoised(sigma, output, x):
    s = column(sigma)
    return x / (s**2 + 1) - output * s / (s**2 + 1).sqrt()


def test_target_of_eps_is_the_noise():
    x = ve(SIGMA, NOISE, X0)
    assert torch.allclose(objectives.target(eps_denoised, SIGMA, x, X0), NOISE, atol=2e-5)


def test_target_of_v_is_salimans_and_hos():
    x, s = ve(SIGMA, NOISE, X0), column(SIGMA)
    alpha, rest = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
    assert torch.allclose(objectives.target(v_denoised, SIGMA, x, X0), alpha * NOISE - rest * X0, atol=2e-5)


def test_target_of_flow_is_noise_minus_picture():
    sigma = torch.tensor([0.1, 0.5, 0.95])
    x = flow(sigma, NOISE, X0)
    assert torch.allclose(objectives.target(eps_denoised, sigma, x, X0), NOISE - X0, atol=2e-5)


def test_min_snr_weights_of_the_paper():
    for sigma in SIGMA:
        s, snr = sigma[None], (1 / sigma**2)[None]
        assert torch.allclose(objectives.signal_to_noise(ve, s), snr)
        eps = objectives.min_snr_weight(snr, objectives.slope(eps_denoised, s, X0[:1]), 5.0)
        v = objectives.min_snr_weight(snr, objectives.slope(v_denoised, s, X0[:1]), 5.0)
        assert torch.allclose(eps, snr.clamp(max=5) / snr)
        assert torch.allclose(v, snr.clamp(max=5) / (snr + 1))


def test_signal_to_noise_of_flow():
    assert objectives.signal_to_noise(flow, torch.tensor([0.25])).item() == pytest.approx(9.0)


def test_offset_noise_shifts_channels():
    offset = torch.randn(3, 4, 1, 1)
    assert torch.equal(objectives.offset_noise(NOISE, offset, 0.0), NOISE)
    assert torch.allclose(objectives.offset_noise(NOISE, offset, 0.1) - NOISE, 0.1 * offset.expand_as(NOISE), atol=1e-6)


def test_loss_of_a_perfect_network_is_zero_and_of_zero_is_one():
    sigmas = torch.linspace(0.1, 10, 50)
    level = torch.tensor([0.0, 0.5, 0.999])
    perfect = objectives.DiffusionLoss(lambda x, sigma: NOISE, ve, eps_denoised, sigmas)
    assert perfect(X0, NOISE, level).max() < 1e-9
    zero = objectives.DiffusionLoss(lambda x, sigma: torch.zeros_like(x), ve, eps_denoised, sigmas)
    assert torch.allclose(zero(X0, NOISE, level), NOISE.square().flatten(1).mean(1), rtol=1e-4)
    weighted = objectives.DiffusionLoss(lambda x, sigma: torch.zeros_like(x), ve, eps_denoised, sigmas, 5.0)
    assert (weighted(X0, NOISE, level)[0] < 0.1 * zero(X0, NOISE, level)[0]) & (sigmas[0] == 0.1)


@pytest.mark.parametrize("cfg", [1.5, 3.5])
def test_undistilling_solves_guidance_for_the_prediction(cfg):
    """A network that keeps its guidance has no loss where what it guides is right."""
    unconditional = 0.3 * X0
    guided = unconditional + cfg * (NOISE - unconditional)
    assert torch.allclose(objectives.undistilled(guided, unconditional, cfg), NOISE, atol=1e-6)


def test_logit_normal_levels():
    """The logits of uniform levels become standard normal; a step draws its levels so."""
    levels = objectives.logit_normal(torch.linspace(0.0, 0.99999, 20001))
    logits = torch.logit(levels)
    assert bool((levels[1:] > levels[:-1]).all()) and 0.0 < levels.min() and levels.max() < 1.0
    assert logits.mean().abs() < 0.01 and logits.std().item() == pytest.approx(1.0, abs=0.02)
    assert ((levels > 0.25) & (levels < 0.75)).float().mean().item() == pytest.approx(0.728, abs=0.01)
