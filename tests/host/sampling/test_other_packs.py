"""Beside the patches and guiders that people already use, before and after ours."""

import copy

import comfy.context_windows as context_windows
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_apg, nodes_freelunch, nodes_model_advanced, nodes_pag, nodes_perpneg, nodes_tcfg
from comfy_extras import nodes_custom_sampler as custom

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.node import call
from harness.sampling import counted, guided, relative, stock

PATCHES = {
    "pag": lambda m: call(nodes_pag.PerturbedAttentionGuidance, m, 3.0)[0],
    "rescale": lambda m: call(nodes_model_advanced.RescaleCFG, m, 0.7)[0],
    "freeu": lambda m: call(nodes_freelunch.FreeU_V2, m, 1.3, 1.4, 0.9, 0.2)[0],
    "apg": lambda m: call(nodes_apg.APG, m, 0.5, 5.0, 0.2)[0],
    "tcfg": lambda m: call(nodes_tcfg.TCFG, m)[0],
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", PATCHES)
def test_stock_patches(tiny, base, concept, prompts, name, order):
    positive, negative = prompts
    patch = PATCHES[name]
    links = [Link(model=concept, scale=1.5)]
    model = apply(patch(base), links) if order == "before" else patch(apply(base, links))
    with counted(base, concept) as calls:
        result = stock(model, positive, negative, tiny.latent())
    assert sum(which == 1 for which, _ in calls) == 4
    assert torch.isfinite(result).all()
    assert relative(result, stock(patch(base), positive, negative, tiny.latent())) > 1e-3
    if name != "freeu":  # FreeU knows the widths of real UNets only and leaves the tiny one alone
        assert relative(result, stock(apply(base, links), positive, negative, tiny.latent())) > 1e-3
    without = apply(patch(base), [Link(model=concept, scale=0.0)])
    assert torch.equal(stock(without, positive, negative, tiny.latent()),
                       stock(patch(base), positive, negative, tiny.latent()))


@pytest.mark.parametrize("name", ["pag", "rescale"])
def test_order_does_not_matter_for_patches_of_the_host_guidance(tiny, base, concept, prompts, name):
    positive, negative = prompts
    links = [Link(model=concept, scale=1.5)]
    before = stock(apply(PATCHES[name](base), links), positive, negative, tiny.latent())
    after = stock(PATCHES[name](apply(base, links)), positive, negative, tiny.latent())
    assert torch.equal(before, after)


def test_cfg_functions_run_once_a_step_the_last_on_the_combined_result(tiny, base, concept, prompts):
    positive, negative = prompts
    seen, before = [], []
    patched = apply(base, [Link(model=concept, scale=1.5)])
    patched.set_model_sampler_post_cfg_function(lambda args: (seen.append(args["denoised"]), args["denoised"])[1])
    patched.set_model_sampler_pre_cfg_function(lambda args: (before.append(1), args["conds_out"])[1])
    stock(patched, positive, negative, tiny.latent())
    assert len(seen) == len(before) == 4
    base_only = []
    clone = base.clone()
    clone.set_model_sampler_post_cfg_function(lambda args: (base_only.append(args["denoised"]), args["denoised"])[1])
    stock(clone, positive, negative, tiny.latent())
    assert relative(seen[0], base_only[0]) > 1e-3


def in_place(args):
    args["conds_out"][1].mul_(0.8)
    return args["conds_out"]


def by_copy(args):
    cond, uncond = args["conds_out"]
    return [cond, 0.8 * uncond]


def with_copied_options(args):
    """As two packs run the model once more, with a copy of everything that hangs on it."""
    options = copy.deepcopy(args["model_options"])
    again = comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["timestep"], options)
    return [args["conds_out"][0], 0.8 * again[1]]


@pytest.mark.parametrize("change", [in_place, with_copied_options])
def test_pre_cfg_functions_change_the_hosts_guidance_alone(tiny, base, concept, prompts, change):
    """Changed in place, the recipe's own D_0 went along: up to 32 -> 0. Copied options copied the run: crash -> 0."""
    positive, negative = prompts
    links = [Link(model=concept, scale=1.5), Link(conditioning=tiny.conditioning(3), scale=0.5)]
    results = []
    for function in (by_copy, change):
        clone = base.clone()
        clone.set_model_sampler_pre_cfg_function(function)
        results.append(stock(apply(clone, links), positive, negative, tiny.latent()))
    assert relative(*results) < 1e-5
    assert relative(results[0], stock(apply(base, links), positive, negative, tiny.latent())) > 0.01


def test_what_a_pre_cfg_function_makes_of_the_unconditional_is_no_baseline(tiny, base, concept, prompts):
    positive, negative = prompts
    clone = base.clone()
    clone.set_model_sampler_pre_cfg_function(by_copy)
    d0, dc = (stock(m, negative, negative, tiny.latent(), cfg=1.0, steps=1) for m in (base, concept))
    result = stock(apply(clone, [Link(model=concept, scale=1.5)]), positive, negative, tiny.latent(), steps=1)
    assert relative(result, stock(clone, positive, negative, tiny.latent(), steps=1) + 1.5 * (dc - d0)) < 1e-4


def test_a_patch_that_knows_two_roles_only(tiny, base, concept, prompts):
    positive, negative = prompts
    seen = []

    def attention_patch(q, k, v, extra_options):
        roles = extra_options["cond_or_uncond"]
        seen.append(roles)
        pair = k[:1], k[:1] * 0.5
        return q, torch.cat([pair[role] for role in roles]), v
    patched = base.clone()
    patched.set_model_attn2_patch(attention_patch)
    result = stock(apply(patched, [Link(conditioning=tiny.conditioning(s), scale=0.5) for s in (3, 4)]), positive,
                   negative, tiny.latent())
    assert torch.isfinite(result).all()
    assert all(sorted(roles) == [0, 0, 0, 1] for roles in seen)


def test_model_function_wrapper_sees_two_roles(tiny, base, prompts):
    positive, negative = prompts
    seen = []

    def wrapper(apply_model, args):
        seen.append(list(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])
    wrapped = base.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    links = [Link(conditioning=tiny.conditioning(3), scale=0.5)]
    result = stock(apply(wrapped, links), positive, negative, tiny.latent())
    assert all(sorted(roles) == [0, 0, 1] for roles in seen)
    assert torch.equal(result, stock(apply(base, links), positive, negative, tiny.latent()))


def test_a_pack_that_replaces_the_batch(tiny, base, concept, prompts):
    """The single slot sampler_calc_cond_batch_function is somebody else's: the recipe still gets what it needs."""
    positive, negative = prompts
    links = [Link(model=concept, scale=1.5), Link(conditioning=tiny.conditioning(3), scale=0.5)]
    patched = apply(base, links)

    def one_by_one(args):
        return [comfy.samplers._calc_cond_batch(args["model"], [cond], args["input"], args["sigma"],
                                                args["model_options"])[0] for cond in args["conds"]]
    patched.set_model_sampler_calc_cond_batch_function(one_by_one)
    result = stock(patched, positive, negative, tiny.latent())
    assert relative(result, stock(apply(base, links), positive, negative, tiny.latent())) < 1e-3


def test_perp_neg_and_dual_cfg_guiders(tiny, base, concept, prompts):
    positive, negative = prompts
    other = tiny.conditioning(3)
    for make in (lambda m: call(nodes_perpneg.PerpNegGuider, m, positive, negative, other, 4.0, 1.0)[0],
                 lambda m: call(custom.DualCFGGuider, m, positive, other, negative, 3.0, 2.0, "regular")[0]):
        plain = guided(make(base), tiny.latent())
        with counted(base, concept) as calls:
            result = guided(make(apply(base, [Link(model=concept, scale=1.0)])), tiny.latent())
        assert calls == [(1, 1), (0, 3)] * 4
        assert relative(result, plain) > 1e-3
        without = guided(make(apply(base, [Link(model=concept, scale=0.0)])), tiny.latent())
        assert torch.equal(without, plain)


def test_concept_model_with_patches_of_its_own(tiny, base, concept, prompts):
    """An attention patch on the concept model changes the concept's prediction and nothing else."""
    positive, negative = prompts
    tuned = concept.clone()
    tuned.set_model_attn1_replace(lambda q, k, v, extra_options: v, "middle", 0)
    with_patch = stock(apply(base, [Link(model=tuned)]), positive, negative, tiny.latent(), steps=1)
    d0, dp = (stock(base, c, negative, tiny.latent(), cfg=1.0, steps=1) for c in (negative, positive))
    dc = stock(tuned, negative, negative, tiny.latent(), cfg=1.0, steps=1)
    assert relative(with_patch, d0 + 2.5 * (dp - d0) + (dc - d0)) < 1e-4


def test_context_windows(tiny, base, concept, prompts):
    """The host then runs the base in windows; what the recipe adds runs in them, too."""
    positive, negative = prompts
    style = tiny.conditioning(3)
    model = base.clone()
    model.model_options["context_handler"] = context_windows.IndexListContextHandler(
        context_schedule=context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=context_windows.get_matching_fuse_method("pyramid"), context_length=4, context_overlap=1, dim=2)
    links = [Link(model=concept, scale=1.0), Link(conditioning=style, scale=0.5)]
    result = stock(apply(model, links), positive, negative, tiny.latent(), steps=1)
    d0, dp, ds = (stock(model, c, negative, tiny.latent(), cfg=1.0, steps=1) for c in (negative, positive, style))
    dc = stock(concept, negative, negative, tiny.latent(), cfg=1.0, steps=1)
    assert relative(result, d0 + 2.5 * (dp - d0) + (dc - d0) + 0.5 * (ds - d0)) < 1e-4
    assert relative(dp, stock(base, positive, negative, tiny.latent(), cfg=1.0, steps=1)) > 1e-3
    result = guided(Guider(model, negative, links, baseline_model=concept), tiny.latent(), steps=1)
    assert relative(result, dc + 0.5 * (ds - dc)) < 1e-4
