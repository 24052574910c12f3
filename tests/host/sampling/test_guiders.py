"""Other guiders and samplers of the host: what their baseline is, second stages, latents that change size."""

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_advanced_samplers as advanced
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras import nodes_perpneg

from gcfg_pack.gcfg.guidance import Performance, Shaping
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.node import call
from harness.sampling import counted, gcfg, guided, relative, sampled, stock


def denoised(base, conditioning, latent):
    """A prediction of a model by the host alone, in one Euler step."""
    return stock(base, conditioning, conditioning, latent, steps=1, cfg=1.0)


def test_dual_model_guider_is_measured_from_its_negative_model(tiny, base, concept, prompts):
    """It was measured from the patched model's own negative, at the cost of a pass: 1.3 -> 0."""
    if not hasattr(custom, "DualModelGuider"):
        pytest.skip("this host has no DualModelGuider")
    positive, negative = prompts
    weak, latent = tiny.sd15(3), tiny.latent()
    patched = apply(base, [Link(model=concept, scale=1.5)])
    guider = call(custom.DualModelGuider, patched, positive, 2.5, weak, negative)[0]
    with counted(base, weak, concept) as calls:
        result = guided(guider, latent, steps=1)
    assert sorted(calls) == [(0, 1), (1, 1), (2, 1)]
    d0, dp, dc = denoised(weak, negative, latent), denoised(base, positive, latent), denoised(concept, negative, latent)
    assert relative(result, d0 + 2.5 * (dp - d0) + 1.5 * (dc - d0)) < 1e-4


def test_dual_model_guider_at_cfg_1_still_runs_the_recipe(tiny, base, concept, prompts):
    """It returns its positive without calling a post-CFG function: the recipe was dropped in silence."""
    if not hasattr(custom, "DualModelGuider"):
        pytest.skip("this host has no DualModelGuider")
    positive, negative = prompts
    latent = tiny.latent()
    patched = apply(base, [Link(model=concept, conditioning=positive, scale=1.5)])
    guider = call(custom.DualModelGuider, patched, positive, 1.0, tiny.sd15(3), negative)[0]
    d0, dp, dc = (denoised(*p, latent) for p in ((base, negative), (base, positive), (concept, positive)))
    assert relative(guided(guider, latent, steps=1), dp + 1.5 * (dc - d0)) < 1e-4


def test_perp_neg_guider_is_measured_from_its_empty_prompt(tiny, base, concept, prompts):
    """It was measured from "negative", the prompt to avoid."""
    positive, negative = prompts
    empty, latent = tiny.conditioning(3), tiny.latent()

    def guider(model):
        return call(nodes_perpneg.PerpNegGuider, model, positive, negative, empty, 4.0, 1.0)[0]
    plain = guided(guider(base), latent, steps=1)
    result = guided(guider(apply(base, [Link(model=concept, scale=1.5)])), latent, steps=1)
    dc, de = denoised(concept, empty, latent), denoised(base, empty, latent)
    assert relative(result, plain + 1.5 * (dc - de)) < 1e-4


def noise_levels(base, steps):
    return comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "karras", steps)


def test_zero_init_acts_only_where_a_run_begins_with_noise(tiny, base, concept, prompts):
    """In a second stage it acted again: 0.20 -> 0."""
    positive, negative = prompts
    sigmas, latent = noise_levels(base, 6), tiny.latent(seed=7)
    results = [sampled(Guider(base, negative, [Link(conditioning=positive), Link(model=concept, shaping=Shaping(
        zero_init_steps=n))]), latent, sigmas[3:]) for n in (0, 1)]
    assert torch.equal(*results)
    first = [sampled(Guider(base, negative, [Link(model=concept, shaping=Shaping(zero_init_steps=n))]), latent, sigmas)
             for n in (0, 1)]
    assert not torch.equal(*first)


@pytest.mark.parametrize("kind", ["mask", "momentum", "refresh"])
def test_a_sampler_that_changes_the_size_of_the_latent(tiny, base, concept, prompts, kind):
    """SamplerLCMUpscale: a shape error -> right, with masks for each size and a new beginning of what is kept."""
    positive, negative = prompts
    mask = torch.zeros((1, 8, 8))
    mask[:, :4] = 1.0
    link = Link(model=concept, scale=0.5, mask=mask if kind == "mask" else None,
                shaping=Shaping(momentum=-0.3 if kind == "momentum" else 0.0))
    performance = Performance(refresh_every=2) if kind == "refresh" else None
    sampler = call(advanced.SamplerLCMUpscale, 2.0, 2, "nearest-exact")[0]
    guider = Guider(base, negative, [Link(conditioning=positive), link], performance=performance)
    result = call(custom.SamplerCustomAdvanced, custom.Noise_RandomNoise(5), guider, sampler, noise_levels(base, 4),
                  tiny.latent())[0]["samples"]
    assert result.shape[-1] == 16 and torch.isfinite(result).all()


def test_a_guider_of_two_patched_models(tiny, base, concept, prompts):
    """Such a guider merges the wrappers of both MODELs: the guidance was added twice, or ``zip()`` crashed."""
    positive, negative = prompts
    patched = apply(base, [Link(model=concept, scale=1.5)])

    class Both(comfy.samplers.CFGGuider):
        def __init__(self, model, bad):
            super().__init__(model)
            self.model_options = comfy.model_patcher.create_model_options_clone(model.model_options)
            comfy.sampler_helpers.prepare_model_patcher(bad, {}, self.model_options)

    def run(model, bad):
        guider = Both(model, bad)
        guider.set_conds(positive, negative)
        guider.set_cfg(2.5)
        return guided(guider, tiny.latent())
    expected = gcfg(base, positive, negative, tiny.latent(), concept, 1.5)
    assert torch.equal(run(patched, base), expected)
    assert torch.equal(run(patched, patched.clone()), expected)
    for model in (base, apply(base, [Link(model=concept, scale=0.5)])):
        with pytest.raises(ValueError, match="A model beside the sampler's own carries GCFG guidances"):
            run(model, patched)
