"""KSampler, guider and patch against the host's own sampler and against the equation written out by hand."""

import comfy.samplers
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import counted, gcfg, guided, relative, stock, through_guider, without_free_memory

pytestmark = pytest.mark.smoke

SAMPLERS = ["euler", "heun", "dpmpp_2m", "dpmpp_sde", "ddim", "lcm", "uni_pc", "euler_cfg_pp"]


@pytest.fixture
def prompts(tiny):
    """Positive, negative and a style."""
    return tiny.conditioning(1), tiny.conditioning(2), tiny.conditioning(3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_guidance_equals_stock_to_the_bit(tiny, base, prompts, sampler):
    positive, negative, _ = prompts
    expected = stock(base, positive, negative, tiny.latent(), sampler=sampler)
    assert torch.equal(gcfg(base, positive, negative, tiny.latent(), sampler=sampler), expected)
    assert torch.equal(through_guider(base, positive, negative, tiny.latent(), sampler=sampler), expected)
    without_effect = apply(base, [Link(conditioning=prompts[2], scale=0.0)])
    assert torch.equal(stock(without_effect, positive, negative, tiny.latent(), sampler=sampler), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guider_patch_and_ksampler_agree(tiny, base, concept, prompts, sampler):
    positive, negative, style = prompts
    links = (Link(model=concept, scale=1.5), Link(conditioning=style, scale=-0.7))
    patched = stock(apply(base, links), positive, negative, tiny.latent(), sampler=sampler)
    assert not torch.equal(patched, stock(base, positive, negative, tiny.latent(), sampler=sampler))
    assert torch.equal(through_guider(base, positive, negative, tiny.latent(), links, sampler=sampler), patched)
    node = gcfg(base, positive, negative, tiny.latent(), concept, 1.5, sampler=sampler, links=links[1:])
    assert torch.equal(node, patched)


def predictor(patcher, conditioning):
    """The denoised prediction of a model by a direct call, without any of the host's samplers."""
    model = patcher.model
    context = conditioning[0][0]

    def denoised(x, sigma):
        sampling = model.model_sampling
        t = sampling.timestep(sigma.expand(x.shape[0]))
        output = model.diffusion_model(sampling.calculate_input(sigma, x), t.float(), context=context)
        return sampling.calculate_denoised(sigma, output, x)
    return denoised


@pytest.mark.parametrize("predictions", [("eps", "eps"), ("eps", "v"), ("v", "eps"), ("flow", "flow")])
def test_equals_a_hand_written_euler_loop(tiny, prompts, predictions):
    base, concept = (tiny.sd15(seed, prediction=p) for seed, p in enumerate(predictions))
    positive, negative, style = prompts
    links = (Link(model=concept, scale=1.5), Link(conditioning=style, scale=-0.7, reference="previous guidance"),
             Link(model=concept, conditioning=style, scale=0.4, reference="custom", reference_model=base,
                  reference_conditioning=positive))
    result = gcfg(base, positive, negative, tiny.latent(), links=links)

    sampling = base.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", 4)
    noise = torch.randn((1, 4, 8, 8), generator=torch.manual_seed(5))
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), max_denoise=True)
    b, c = (lambda t: predictor(base, t)), (lambda t: predictor(concept, t))
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        d0, dp, dc = b(negative)(x, sigma), b(positive)(x, sigma), c(negative)(x, sigma)
        ds, dcs = b(style)(x, sigma), c(style)(x, sigma)
        d = d0 + 2.5 * (dp - d0) + 1.5 * (dc - d0) - 0.7 * (ds - dc) + 0.4 * (dcs - dp)
        x = x + (x - d) / sigma * (following - sigma)
    expected = base.model.process_latent_out(x)
    assert relative(result, expected) < 2e-4


def test_batch_of_three_equals_three_batches_of_one(tiny, base, concept):
    positive, negative = tiny.conditioning(1, batch=3), tiny.conditioning(2)
    latent = tiny.latent(batch=3, seed=7)
    together = gcfg(base, positive, negative, latent, concept)
    for i in range(3):
        one = {"samples": latent["samples"][i:i + 1], "batch_index": [i]}
        alone = gcfg(base, [[positive[0][0][i:i + 1], {}]], negative, one, concept)
        assert relative(together[i:i + 1], alone) < 1e-3


def test_forward_passes(tiny, base, concept, prompts):
    positive, negative, style = prompts
    latent = tiny.latent()
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, latent, concept)
    assert calls == [(1, 1), (0, 2)] * 4  # three predictions on two models: two calls a step
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, latent, concept, concept_scale=0.0)
    assert calls == [(0, 2)] * 4
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, latent, concept, control_scale=0.0)
    assert calls == [(1, 1), (0, 1)] * 4
    with counted(base, concept) as calls:
        links = [Link(conditioning=style), Link(conditioning=positive, scale=-1.0), Link(), Link(model=concept)]
        gcfg(base, positive, negative, latent, concept, links=links)
    assert calls == [(1, 1), (0, 3)] * 4  # the positive, the unconditional and the concept are already there
    with counted(base, concept) as calls:
        through_guider(base, positive, negative, latent, [Link(model=concept)], scale=0.0)
    assert calls == [(1, 1), (0, 1)] * 4


def test_windows_cost_nothing_outside(tiny, base, concept, prompts):
    positive, negative, style = prompts
    sampling = base.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 4)
    inside = sum(sampling.percent_to_sigma(0.6) <= float(s) <= sampling.percent_to_sigma(0.2) for s in sigmas[:-1])
    assert 0 < inside < 4
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, tiny.latent(), scheduler="normal",
             links=[Link(model=concept, start=0.2, end=0.6)])
    assert sum(which == 1 for which, _ in calls) == inside
    with counted(concept) as calls:
        outside = gcfg(base, positive, negative, tiny.latent(), scheduler="normal",
                       links=[Link(model=concept, start=0.1, end=0.101)])
    assert not calls
    assert torch.equal(outside, stock(base, positive, negative, tiny.latent(), scheduler="normal"))


def test_smaller_batches_when_memory_is_short(tiny, base, prompts, monkeypatch):
    positive, negative, style = prompts
    expected = gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=style)])
    without_free_memory(monkeypatch, base)
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=style)])
    assert calls == [(0, 1)] * 12
    assert relative(result, expected) < 1e-3


def test_baseline_of_another_model(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    with counted(base, concept) as calls:
        result = through_guider(base, positive, negative, tiny.latent(), baseline_model=concept)
    assert sorted(calls) == [(0, 1)] * 4 + [(1, 1)] * 4
    swapped = guided(Guider(concept, negative, [Link(model=base, conditioning=positive, scale=2.5)]), tiny.latent())
    assert relative(result, swapped) < 1e-5


def test_reference_of_the_first_guidance(tiny, base, prompts):
    """Without a guidance before it, "previous guidance" is the baseline: dropping a node never breaks the chain."""
    positive, negative, _ = prompts
    previous = guided(Guider(base, negative, [Link(conditioning=positive, reference="previous guidance")]),
                      tiny.latent())
    plain = guided(Guider(base, negative, [Link(conditioning=positive)]), tiny.latent())
    assert torch.equal(previous, plain)
