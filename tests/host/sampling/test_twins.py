"""The twin law: a guidance by a model with the base's weights, measured from what it equals, changes nothing.

A comment names the difference before the repair and after it, in standard deviations of the picture.
"""

import comfy.hooks
import comfy.sd
import comfy_extras.nodes_sag as nodes_sag
import nodes
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.gcfg.host.sampling.tracing import trace_of
from gcfg_pack.nodes.grids import GCFGScaleGrid
from harness.node import call
from harness.sampling import counted, gcfg, relative, stock, through_guider, without_free_memory
from harness.twins import windows, with_null_text

SMALL = 1e-4


@pytest.fixture
def prompts(tiny):
    return tiny.conditioning(1), tiny.conditioning(2), tiny.conditioning(3)


@pytest.fixture
def twin(tiny):
    """A model with the base's weights in a module of its own."""
    return tiny.sd15(1)


def image(seed=1):
    return torch.rand((1, 64, 64, 3), generator=torch.manual_seed(seed))


def lora(tiny, model, seed=3):
    return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, seed), 1.0, 0.0)[0]


def old_control(tiny, conditioning, strength=1.0):
    return nodes.ControlNetApply().apply_controlnet(conditioning, tiny.controlnet(), image(), strength)[0]


def area(conditioning):
    return nodes.ConditioningSetArea().append(conditioning, 32, 64, 0, 0, 1.0)[0]


def half(width=64):
    mask = torch.zeros((1, 64, 64))
    mask[..., :32] = 1.0
    return mask


# --- what attention patches find in a batch -------------------------------------------------------------------------


def nag(model):
    nodes_nag = pytest.importorskip("comfy_extras.nodes_nag")
    return call(nodes_nag.NAGuidance, model, 5.0, 0.5, 1.5)[0]


def sag(model):
    return call(nodes_sag.SelfAttentionGuidance, model, 0.5, 2.0)[0]


PATCHES = {"nag": nag, "sag": sag, "sag in windows": lambda model: sag(windows(model))}


@pytest.mark.parametrize("memory", ["enough", "for a pair", "short"])
@pytest.mark.parametrize("name", PATCHES)
def test_attention_patches_see_the_samplers_own_pair(tiny, base, prompts, name, memory, monkeypatch):
    """NAG with a second prompt: 0.96 -> 1e-4, with a LoRA clone: 2.0 -> 1e-4; SAG with a LoRA clone: 0.73 -> 1e-4.

    Under context windows the recipe's rows ran after the sampler's, and SAG kept theirs: 1.2 -> 1e-4.
    """
    positive, negative, style = prompts
    patched = PATCHES[name](base)
    latent = tiny.latent(height=16, width=16)
    if memory == "short":
        without_free_memory(monkeypatch, base)
    if memory == "for a pair":
        monkeypatch.setattr(type(base.model), "memory_required",
                            lambda self, shape, cond_shapes=None: 0 if shape[0] <= 2 else 1e18)
    expected = stock(patched, positive, negative, latent, steps=1)
    chains = {"prompt": [Link(conditioning=style, scale=SMALL)],
              "clone": [Link(model=lora(tiny, patched), scale=SMALL)],
              "both": [Link(model=lora(tiny, patched), conditioning=style, scale=SMALL),
                       Link(conditioning=style, scale=SMALL), Link(model=lora(tiny, patched), scale=SMALL)]}
    for links in chains.values():
        assert relative(stock(apply(patched, links), positive, negative, latent, steps=1), expected) < 2e-3


def test_unguided_rows_come_first_and_own_rows_first_of_each_role(tiny, base, prompts):
    """Packs expect all unguided rows before all guided ones: [1, 0, 0, 1] -> [1, 1, 0, 0]."""
    positive, negative, style = prompts
    seen = []
    watched = base.clone()
    watched.set_model_attn1_patch(
        lambda q, k, v, extra: (seen.append((extra["cond_or_uncond"], extra["uuids"])), (q, k, v))[1])
    links = [Link(conditioning=style), Link(model=lora(tiny, watched)), Link(model=lora(tiny, watched, 4))]
    stock(apply(watched, links), positive, negative, tiny.latent())
    assert all(roles == [1, 1, 1, 0, 0] for roles, _ in seen)
    assert all(len(set(uuids)) == 5 for _, uuids in seen)


# --- what the host copies from positive to negative -----------------------------------------------------------------


def positives(tiny, style, positive):
    bounds = nodes.ConditioningSetMask().append(style, half(), "mask bounds", 1.0)[0]
    return {
        "old ControlNet": old_control(tiny, positive),  # 7.0 -> 0
        "area and full prompt": positive + area(style),  # 1.6 -> 0
        "mask bounds": positive + bounds,  # 2.0 -> 0
    }


@pytest.mark.parametrize("kind", ["old ControlNet", "area and full prompt", "mask bounds"])
def test_a_twin_takes_what_the_host_copies_to_the_negative(tiny, base, twin, prompts, kind):
    positive, negative, style = prompts
    positive = positives(tiny, style, positive)[kind]
    expected = stock(base, positive, negative, tiny.latent())
    result = gcfg(base, positive, negative, tiny.latent(), twin)
    assert relative(result, expected) < 1e-4
    result = gcfg(base, positive, negative, tiny.latent(), links=[
        Link(model=twin, conditioning=positive, reference="previous guidance", scale=3.0)])
    assert relative(result, expected) < 1e-4


@pytest.mark.parametrize("kind", ["old ControlNet", "area and full prompt", "mask bounds"])
def test_control_scale_zero_is_the_limit_of_a_small_one(tiny, base, concept, prompts, kind):
    """It replaced the positive by the negative and dropped what that takes from it: 2.9 -> 1e-5."""
    positive, negative, style = prompts
    positive = positives(tiny, style, positive)[kind]
    zero, small = (gcfg(base, positive, negative, tiny.latent(), concept, control_scale=s) for s in (0.0, 1e-6))
    assert relative(zero, small) < 1e-3


def test_control_scale_zero_keeps_the_formula_of_previous_guidance(tiny, base, concept, prompts):
    """1.8 -> 1e-5; the positive is predicted where a guidance is measured from it, and only there."""
    positive, negative, _ = prompts
    chain = dict(links=[Link(model=concept, reference="previous guidance")])
    zero, small = (gcfg(base, positive, negative, tiny.latent(), control_scale=s, **chain) for s in (0.0, 1e-6))
    assert relative(zero, small) < 1e-3
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, tiny.latent(), concept, control_scale=0.0)
    assert sorted(calls) == [(0, 1)] * 4 + [(1, 1)] * 4
    zero, small = (through_guider(base, positive, negative, tiny.latent(), scale=s, **chain) for s in (0.0, 1e-6))
    assert relative(zero, small) < 1e-3


@pytest.mark.parametrize("chain", [(), (Link(scale=0.0),)])
def test_control_scale_zero_predicts_no_positive_where_nothing_needs_it(tiny, base, prompts, chain):
    """Without a concept the host predicted both: 2 rows a step -> 1."""
    positive, negative, _ = prompts
    expected = stock(base, positive, negative, tiny.latent(), cfg=0.0)
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), links=chain, control_scale=0.0)
    assert calls == [(0, 1)] * 4
    assert relative(result, expected) < 1e-5


def test_a_column_of_control_scale_zero_is_the_limit_of_a_small_one(tiny, base, concept, prompts):
    """In a Scale Grid, too: 1.8 -> 1e-5."""
    positive, negative, _ = prompts
    chain = (Link(model=concept, reference="previous guidance"),)
    latent = GCFGScaleGrid.execute(base, positive, negative, tiny.latent(), 5, 4, "1", "0, 0.000001", "euler", "karras",
                                   1.0, guidance=chain).args[0]
    zero, small = latent["samples"]
    assert relative(zero, small) < 1e-3


@pytest.mark.parametrize("kind", ["area", "old ControlNet"])
def test_a_guidance_is_measured_from_what_the_host_pairs_with_its_conditioning(tiny, base, twin, prompts, kind):
    """An area was measured from an uncropped D_0: 1.5 -> 0."""
    positive, negative, style = prompts
    style = area(style) if kind == "area" else old_control(tiny, style)
    one = dict(steps=1)
    d = {s: stock(base, style, negative, tiny.latent(), cfg=s, **one) for s in (1.0, 0.0)}  # D(style), D(negative)
    plain = stock(base, positive, negative, tiny.latent(), **one)
    where = half()[:, ::8, ::8] if kind == "area" else 1.0
    for model in (None, twin):
        links = [Link(model=model, conditioning=style, scale=1.5, reference="custom", reference_model=model)]
        result = gcfg(base, positive, negative, tiny.latent(), links=links, **one)
        inside = (result - plain - 1.5 * (d[1.0] - d[0.0]) * where)[..., :1 if kind == "area" else None]
        assert float(inside.abs().max() / plain.std()) < 1e-3


def test_strength_of_a_masked_conditioning_is_normalised_as_the_host_does(tiny, base, prompts):
    """ConditioningSetMask with strength 0.4 on a Guidance: 1.3 -> 0."""
    positive, negative, style = prompts
    results = [gcfg(base, positive, negative, tiny.latent(), links=[
        Link(conditioning=nodes.ConditioningSetMask().append(style, half(), "default", s)[0])]) for s in (1.0, 0.4)]
    assert relative(*results) < 1e-5


# --- state that lies on hooks and ControlNets -----------------------------------------------------------------------


def scheduled_hook(tiny, model, conditioning):
    """A LoRA hook whose strength changes halfway, as Create Hook Keyframe gives it."""
    group = comfy.hooks.create_hook_lora(tiny.lora(model, 3), 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.2, 0.0), (1.0, 0.3), (2.0, 0.6)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    group.set_keyframes_on_hooks(keyframes)
    return [[cross_attn, {**options, "hooks": group}] for cross_attn, options in conditioning]


@pytest.mark.parametrize("side", ["negative", "positive"])
def test_hooks_with_keyframes_on_two_models(tiny, base, twin, prompts, side):
    """The second model stayed at the first keyframe: 0.10 -> 0."""
    positive, negative, _ = prompts
    hooked = {"positive": positive, "negative": negative}
    hooked[side] = scheduled_hook(tiny, base, hooked[side])
    expected = stock(base, hooked["positive"], hooked["negative"], tiny.latent(), scheduler="normal", steps=8)
    links = [Link(model=twin, conditioning=hooked["positive"], reference="previous guidance"), Link(model=twin)]
    result = gcfg(base, hooked["positive"], hooked["negative"], tiny.latent(), links=links, scheduler="normal", steps=8)
    assert relative(result, expected) < 1e-4


@pytest.mark.parametrize("patch", ["plain", "sag"])
def test_hooks_on_a_null_text_concept_over_one_copy(tiny, base, twin, prompts, patch):
    """They add to the cross-attention that it switches off, as in a model of its own, where rows skipped it: 0.45 -> 0.

    Drawn cases had found it beside Self-Attention Guidance.
    """
    positive, negative, style = prompts
    style, latent = scheduled_hook(tiny, base, style), tiny.latent(height=16, width=16)
    patched = sag(base) if patch == "sag" else base
    one, two = (gcfg(patched, positive, negative, latent, scheduler="normal", links=[
        Link(model=with_null_text(model), conditioning=style), Link(conditioning=style)]) for model in (base, twin))
    assert relative(one, two) < 1e-3


def test_a_ranged_controlnet_on_models_of_two_schedules(tiny, base, prompts):
    """The last model to prepare it set its range in noise levels for both: 0.31 -> 0."""
    from comfy_extras import nodes_model_advanced
    positive, negative, _ = prompts
    controlled = nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, tiny.controlnet(), image(), 1.0, 0.0, 0.5)
    other = call(nodes_model_advanced.ModelSamplingDiscrete, tiny.sd15(2), "eps", True)[0]  # zsnr: other noise levels
    expected = stock(base, *controlled, tiny.latent(), steps=8)
    result = gcfg(base, *controlled, tiny.latent(), other, SMALL, steps=8)
    assert relative(result, expected) < 1e-2


# --- caches ---------------------------------------------------------------------------------------------------------


def passes(model, run):
    """How many forward passes a run takes: the first layer sees those that a cache does not skip."""
    calls = []
    handle = model.model.diffusion_model.time_embed.register_forward_hook(lambda *_: calls.append(1))
    run()
    handle.remove()
    return len(calls)


def test_easycache_keeps_lanes_apart(tiny, base, prompts):
    """Lanes had the uuid of the host's conditioning: on skipped steps the concept guidance was exactly 0."""
    easycache = pytest.importorskip("comfy_extras.nodes_easycache")
    positive, negative, _ = prompts
    latent, counts = tiny.latent(height=16, width=16), []
    for threshold in (0.0, 1e9):
        cached = call(easycache.EasyCacheNode, base, threshold, 0.2, 0.9, False)[0]
        patched = apply(cached, [Link(model=lora(tiny, cached), scale=2.5, name="Concept")])
        counts.append(passes(base, lambda p=patched: stock(
            p, positive, negative, latent, steps=8, scheduler="normal")))
        assert all(reading.sizes[-1] > 1e-3 for reading in trace_of(patched).read())
    assert 2 <= counts[1] < counts[0]  # it does skip


def test_lazycache_skips_whole_steps_with_their_guidances(tiny, base, twin, prompts):
    easycache = pytest.importorskip("comfy_extras.nodes_easycache")
    positive, negative, _ = prompts
    cached, results = call(easycache.LazyCacheNode, base, 1e9, 0.2, 0.9, False)[0], []
    latent, options = tiny.latent(height=16, width=16), dict(steps=8, scheduler="normal")
    steps = passes(base, lambda: results.append(stock(cached, positive, negative, latent, **options)))
    patched = apply(cached, [Link(model=twin, scale=3.0)])
    assert passes(twin, lambda: results.append(stock(patched, positive, negative, latent, **options))) == steps < 8
    assert relative(*results) < 1e-4


# --- what the model of a guidance carries -----------------------------------------------------------------------------


def image_prompt(model, strength):
    """An attention patch that adds something to the guided rows only, as IPAdapter does."""
    def patch(out, extra):
        guided = torch.tensor([role == 0 for role in extra["cond_or_uncond"]])
        rows = guided.repeat_interleave(out.shape[0] // len(guided))
        return out + strength * rows.view(-1, *[1] * (out.ndim - 1)) * out.flip(-1)
    clone = model.clone()
    clone.set_model_attn2_output_patch(patch)
    return clone


def test_an_image_prompt_acts_on_an_unconditional_guidance(tiny, base, concept, prompts):
    """The rows of an unconditional concept had the negative role: exchanging the image changed 0.0 -> 0.1."""
    positive, negative, _ = prompts
    one, other = (gcfg(base, positive, negative, tiny.latent(), image_prompt(concept, s)) for s in (0.5, 1.0))
    assert relative(one, other) > 0.01
    shared = image_prompt(base, 0.5)  # on the base it acts on the positive, and a twin's unconditional equals its own
    twin = tiny.sd15(1)
    twin.model_options = shared.model_options
    expected = stock(shared, positive, negative, tiny.latent())
    assert relative(gcfg(shared, positive, negative, tiny.latent(), twin), expected) < 1e-4


def test_nag_acts_on_every_guidance_as_on_the_samplers_own(tiny, base, twin, prompts):
    """It makes one prediction out of two rows of a batch: a row of ours came without its partner."""
    positive, negative, _ = prompts
    patched = nag(base)
    twin.model_options = patched.model_options
    copy = [[positive[0][0].clone(), {}]]  # the positive by another name
    expected = stock(patched, positive, negative, tiny.latent())
    for links in ([Link(model=twin, conditioning=positive, reference="previous guidance", scale=3.0)],
                  [Link(conditioning=copy, reference="previous guidance", scale=3.0)], [Link(model=twin, scale=3.0)]):
        assert relative(stock(apply(patched, links), positive, negative, tiny.latent()), expected) < 1e-4
    plain = stock(base, positive, negative, tiny.latent())
    assert relative(expected, plain) > 0.01


def test_easycache_of_a_concept_is_its_own(tiny, base, concept, prompts):
    """Its wrapper around a run never ran for a concept: it did not skip, and kept what it saw for ever."""
    easycache = pytest.importorskip("comfy_extras.nodes_easycache")
    positive, negative, _ = prompts
    cached = call(easycache.EasyCacheNode, concept, 1e9, 0.2, 0.9, False)[0]
    latent, results = tiny.latent(height=16, width=16), []
    for _ in range(2):
        assert 2 <= passes(concept, lambda: results.append(gcfg(
            base, positive, negative, latent, cached, steps=8, scheduler="normal"))) < 8
    assert torch.equal(*results)
    assert not cached.model_options["transformer_options"]["easycache"].uuid_cache_diffs
