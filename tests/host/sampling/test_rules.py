"""Rules of the runtime, each by the line that keeps it: what no other test noticed when that line was broken."""

import comfy.conds
import comfy.hooks
import comfy.model_management as management
import comfy.samplers
import comfy.sd
import nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from gcfg_pack.gcfg.guidance import Performance, Shaping
from gcfg_pack.gcfg.host.sampling import run
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.lanes.conditionings import hands_over, is_active
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.models.weights import draw
from harness.sampling import counted, gcfg, guided, relative, sampled, stock


def lora(tiny, model, seed=3):
    return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, seed), 1.0, 0.0)[0]


def controlled(conditioning, net, end=1.0):
    """A conditioning with a ControlNet; the host gives none of it to a negative."""
    hint = draw("hint", (1, 64, 64, 3), 1)
    return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, [], net, hint, 1.0, 0.0, end)[0]


def noise_levels(base, steps=4):
    return comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "karras", steps)


@pytest.fixture
def loads(monkeypatch):
    """The requests to load: the MODELs and the memory beside them."""
    requests, original = [], management.load_models_gpu

    def load(models, memory_required=0, **kwargs):
        requests.append((list(models), memory_required))
        return original(models, memory_required=memory_required, **kwargs)
    monkeypatch.setattr(management, "load_models_gpu", load)
    return requests


# --- plan before running --------------------------------------------------------------------------------------------


def test_what_has_no_effect_is_neither_loaded_nor_run(tiny, base, concept, prompts, loads):
    positive, negative = prompts
    gcfg(base, positive, negative, tiny.latent(), concept, concept_scale=0.0)
    assert len(loads[0][0]) == 1
    guider = Guider(base, negative, [Link(conditioning=positive), Link(model=concept, shaping=Shaping(
        zero_init_steps=3))])
    with counted(concept) as calls:
        sampled(guider, tiny.latent(), noise_levels(base)[:4])
    assert not calls  # zero-init leaves the latent as it is


def test_at_cfg_1_the_unconditional_runs_in_the_samplers_batch(tiny, base, concept, prompts):
    """The host saves it there; a guidance is measured from it."""
    positive, negative = prompts
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, tiny.latent(), concept, control_scale=1.0)
    assert calls == [(1, 1), (0, 2)] * 4


def test_a_controlnet_that_stays_with_its_conditioning_costs_no_further_unconditional(tiny, base, prompts):
    positive, negative = prompts
    style = controlled(positive, tiny.controlnet())
    with counted(base) as calls:
        gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=style)])
    assert sorted(calls) == [(0, 1)] * 4 + [(0, 2)] * 4  # the host keeps what has a ControlNet apart


def test_what_the_host_hands_over():
    """Areas, bounds, boxes of words (GLIGEN) and old ControlNets, from the positive to the negative."""
    old = {"control": object(), "control_apply_to_uncond": True}
    for part in ({"area": (4, 4, 0, 0)}, {"set_area_to_bounds": True}, {"gligen": ("position", None, [])}, old):
        assert hands_over([{}, part])
    for part in ({}, {"set_area_to_bounds": False}, {"gligen": None}, {"control": object()}):
        assert not hands_over([part])


def test_a_range_includes_both_of_its_ends_as_the_hosts_does(tiny):
    x = tiny.latent()["samples"]
    for cond in ({"timestep_start": 2.0}, {"timestep_end": 1.0}, {"timestep_start": 2.0, "timestep_end": 1.0}):
        for sigma in (0.5, 1.0, 1.5, 2.0, 2.5):
            host = comfy.samplers.get_area_and_mult({**cond, "model_conds": {}, "uuid": 1}, x, torch.tensor([sigma]))
            assert is_active([cond], sigma) == (host is not None)


# --- the host manages memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "prompts_more", "factor"), [(0, 0, 1), (0, 1, 2), (0, 2, 2), (1, 0, 1), (1, 2, 2)])
def test_memory_is_asked_for_the_largest_batch(tiny, base, prompts, loads, own, prompts_more, factor):
    """In pairs, rounded up; models run one after the other."""
    positive, negative = prompts
    gcfg(base, positive, negative, tiny.latent())
    links = [Link(conditioning=tiny.conditioning(s)) for s in (3, 4)[:prompts_more]]
    gcfg(base, positive, negative, tiny.latent(), links=[*links, *[Link(model=tiny.sd15(2))][:own]])
    assert loads[1][1] == factor * loads[0][1]


@pytest.mark.parametrize("on", ["base", "concept"])
def test_what_a_guidance_brings_along_is_loaded_with_it(tiny, base, concept, prompts, loads, on):
    positive, negative = prompts
    net, nested = tiny.controlnet(), tiny.sd15(5)
    concept.set_additional_models("pack", [nested])
    links = [Link(model={"base": None, "concept": concept}[on], conditioning=controlled(positive, net))]
    gcfg(base, positive, negative, tiny.latent(), links=links)
    (models, _), *more = loads
    assert not more and any(m is net.control_model_wrapped for m in models)
    assert any(m is nested or m.is_clone(nested) for m in models) == (on == "concept")


def test_a_controlnet_of_a_guidance_lets_go_of_its_hint(tiny, base, prompts):
    positive, negative = prompts
    style = controlled(positive, tiny.controlnet())
    gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=style)])
    assert style[0][1]["control"].cond_hint is None


def test_models_switch_hooks_without_patching_anew(tiny, base, prompts):
    """The host chooses by its own conditionings, none of which may have one."""
    positive, negative = prompts
    group, modes = comfy.hooks.create_hook_lora(tiny.lora(base, 3), 1.0, 0.0), set()
    handle = base.model.diffusion_model.register_forward_hook(
        lambda *_: modes.add(base.model.current_patcher.hook_mode))
    gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=[[positive[0][0], {"hooks": group}]])])
    handle.remove()
    assert modes == {comfy.hooks.EnumHookMode.MaxSpeed}


def test_hooks_that_a_model_does_not_take_split_no_batch(tiny, base, prompts):
    positive, negative = prompts
    group = comfy.hooks.create_hook_lora(tiny.lora(base, 3), 1.0, 1.0)
    group.hooks[0].custom_should_register = lambda *_: False  # as packs say that a hook is for the text encoder
    with counted(base) as calls:
        gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=[[
            tiny.conditioning(3)[0][0], {"hooks": group}]])])
    assert calls == [(0, 3)] * 4


# --- no state survives, a run begins once ---------------------------------------------------------------------------


def test_a_second_stage_does_not_go_on_with_the_first_ones_momentum(tiny, base, concept, prompts):
    positive, negative = prompts
    patched = apply(base, [Link(model=concept, shaping=Shaping(momentum=-0.5))])
    first, _, again = (stock(patched, positive, negative, tiny.latent(seed=7), denoise=d) for d in (0.5, 1.0, 0.5))
    assert torch.equal(first, again)


def test_packs_find_no_run_in_options_that_they_keep(tiny, base, concept, prompts):
    positive, negative = prompts
    kept, left = [], []

    def around(executor, *args, **kwargs):
        result = executor(*args, **kwargs)
        left.extend(key for key in executor.class_obj.model_options if "gcfg" in key)
        return result
    base.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "pack", around)
    patched = apply(base, [Link(model=concept)])
    patched.set_model_sampler_post_cfg_function(lambda args: (kept.append(args["model_options"]), args["denoised"])[1])
    stock(patched, positive, negative, tiny.latent())
    assert kept[0]["gcfg"].lanes == {} and not left


def test_hooks_are_taken_back_where_a_run_fails_to_start(tiny, base, concept, prompts, monkeypatch):
    positive, negative = prompts
    group = comfy.hooks.create_hook_lora(tiny.lora(concept, 3), 1.0, 0.0)
    patched = apply(base, [Link(model=concept, conditioning=[[positive[0][0], {"hooks": group}]])])
    register = run.Run._register_hooks

    def failing(self, owner):
        register(self, owner)
        assert not concept.hook_patches
    monkeypatch.setattr(run.Run, "_register_hooks", failing)
    with pytest.raises(AssertionError):
        stock(patched, positive, negative, tiny.latent())
    assert not concept.hook_patches


def test_a_run_within_a_run_is_the_same(tiny, base, concept, prompts, monkeypatch):
    """A guider of two MODELs merges the wrappers of both."""
    begun, prepare = [], run.Run._prepare
    monkeypatch.setattr(run.Run, "_prepare", lambda self: (begun.append(self), prepare(self))[1])
    guider = comfy.samplers.CFGGuider(apply(base, [Link(model=concept)]))
    comfy.sampler_helpers.prepare_model_patcher(guider.model_patcher.clone(), {}, guider.model_options)
    guider.set_conds(*prompts)
    guided(guider, tiny.latent())
    assert len(begun) == 1


# --- coefficients are each model's own ------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_reused_guidances_are_differences_of_velocities(tiny, prompts, prediction):
    """What a guidance adds at a step without a pass of its own, from what it added at the last one with it."""
    base, concept = (tiny.sd15(seed, prediction=prediction) for seed in (1, 2))
    patched, added, sigmas = apply(base, [Link(model=concept)], performance=Performance(refresh_every=2)), [], []

    def note(args):
        host = args["uncond_denoised"] + args["cond_scale"] * (args["cond_denoised"] - args["uncond_denoised"])
        added.append(args["denoised"] - host)
        sigmas.append(float(args["sigma"][0]))
        return args["denoised"]
    patched.set_model_sampler_post_cfg_function(note)
    stock(patched, *prompts, tiny.latent(), steps=2, scheduler="normal")
    sizes = [s if prediction == "flow" else s / (s**2 + 1) ** 0.5 for s in sigmas]
    assert len(sigmas) == 2 and sigmas[1] < 0.9 * sigmas[0]
    assert relative(added[1], added[0] * sizes[1] / sizes[0]) < 1e-3
