"""Other guiders and samplers of the host: what their baseline is, second stages, latents that change size."""

import comfy.conds
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
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


def test_the_previous_guidance_of_the_second_is_the_first(tiny, base, concept, prompts):
    """Which the host computes, in the guider as under the patch."""
    positive, negative = prompts
    chain = [Link(model=concept, reference="previous guidance")]
    expected = stock(apply(base, chain), positive, negative, tiny.latent())
    guider = Guider(base, negative, [Link(conditioning=positive, scale=2.5), *chain])
    assert torch.equal(guided(guider, tiny.latent()), expected)
    from_unconditional = stock(apply(base, [Link(model=concept)]), positive, negative, tiny.latent())
    assert relative(expected, from_unconditional) > 0.01


class AtOne(comfy.samplers.CFGGuider):
    """Guides at a scale of its own choice."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, self.conds["negative"],
                                                self.conds["positive"], 1.0, model_options, seed=seed)


LOOKING = {
    "post": lambda m: m.set_model_sampler_post_cfg_function(
        lambda args: args["denoised"] - args["uncond_denoised"] + args["cond_denoised"]),
    "pre": lambda m: m.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0]] * 2),
    "cfg": lambda m: m.set_model_sampler_cfg_function(lambda args: args["cond"]),
    "guider": lambda m: None,
}


@pytest.mark.parametrize("who", LOOKING)
def test_at_cfg_0_the_positive_is_there_for_whoever_looks_at_it(tiny, base, concept, prompts, who):
    (positive, negative), latent = prompts, tiny.latent()
    model = apply(base, [Link(model=concept)])
    LOOKING[who](model)
    guider = (AtOne if who == "guider" else comfy.samplers.CFGGuider)(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(0.0)
    dp, dc, d0 = (denoised(*p, latent) for p in ((base, positive), (concept, negative), (base, negative)))
    assert relative(guided(guider, latent, steps=1), dp + dc - d0) < 1e-4


@pytest.mark.parametrize("more", ["mask", "shaping", "perpendicular_to", "reference"])
def test_only_plain_guidance_goes_the_hosts_way(tiny, base, prompts, more):
    """A first guidance is more than the host's where something is connected to it; a clone never goes that way."""
    positive, negative = prompts
    style, mask = tiny.conditioning(3), torch.zeros((1, 8, 8))
    mask[:, :4] = 1.0
    options = {"mask": {"mask": mask}, "shaping": {"shaping": Shaping(parallel=0.0)},
               "perpendicular_to": {"perpendicular_to": Link(conditioning=style)},
               "reference": {"reference": "custom", "reference_conditioning": style}}[more]
    plain, *results = (guided(Guider(base, negative, [Link(model=model, conditioning=positive, scale=2.5, **given)]),
                              tiny.latent(), steps=1)
                       for model, given in ((base, {}), (base, options), (base.clone(), options)))
    assert relative(*results) < 1e-4 and relative(results[0], plain) > 0.01


class FromOther(comfy.samplers.CFGGuider):
    """Guides away from another conditioning than its negative."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = [self.conds["positive"], self.conds["other"]]
        predictions = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return comfy.samplers.cfg_function(self.inner_model, *predictions, self.cfg, x, timestep, model_options,
                                           *conds)


def test_a_guidance_is_measured_from_what_the_guider_guides_away_from(tiny, base, concept, prompts):
    (positive, negative), other, latent = prompts, tiny.conditioning(3), tiny.latent()
    guider = FromOther(apply(base, [Link(model=concept, conditioning=tiny.conditioning(4), scale=1.5)]))
    guider.inner_set_conds({"positive": positive, "negative": negative, "other": other})
    guider.set_cfg(2.5)
    do, dp, dc = (denoised(*p, latent) for p in ((base, other), (base, positive), (concept, tiny.conditioning(4))))
    assert relative(guided(guider, latent, steps=1), do + 2.5 * (dp - do) + 1.5 * (dc - do)) < 1e-4


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


class Direct(comfy.samplers.CFGGuider):
    """Runs no wrapper around its predictions, as the guider of KSampler with NAG."""

    def __call__(self, x, timestep, model_options=None, seed=None):
        return self.predict_noise(x, timestep, model_options=model_options, seed=seed)


def test_a_guider_that_runs_no_wrappers(tiny, base, concept, prompts):
    patched = apply(base, [Link(model=concept)])
    guider = Direct(patched)
    guider.set_conds(*prompts)
    guider.set_cfg(2.5)
    assert torch.equal(guided(guider, tiny.latent()), stock(patched, *prompts, tiny.latent()))


def test_a_guider_that_asks_another_model_first(tiny, base, concept, prompts):
    if not hasattr(custom, "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")

    class NegativeFirst(custom.Guider_DualModel):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            comfy.samplers.calc_cond_batch(self.uncond_inner, [self._uncond_conds], x, timestep, model_options)
            return super().predict_noise(x, timestep, model_options, seed)

    def result(kind):
        guider = kind(apply(base, [Link(model=concept)]), tiny.sd15(3))
        guider.set_conds(*prompts)
        guider.set_cfg(2.5)
        return guided(guider, tiny.latent())
    assert torch.equal(result(NegativeFirst), result(custom.Guider_DualModel))


def test_what_a_pack_says_to_the_model_during_a_step_is_said_of_every_row(tiny, base, prompts):
    def adding(executor, model, conds, *args):
        told = {"of_pack": comfy.conds.CONDConstant(1.0)}
        return executor(model, [[{**c, "model_conds": {**c["model_conds"], **told}} for c in part] for part in conds],
                        *args)
    base.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "pack", adding)
    seen = []
    handle = base.model.diffusion_model.register_forward_pre_hook(
        lambda network, args, kwargs: seen.append((len(args[0]), "of_pack" in kwargs)), with_kwargs=True)
    stock(apply(base, [Link(conditioning=tiny.conditioning(3))]), *prompts, tiny.latent())
    handle.remove()
    assert seen == [(3, True)] * 4
