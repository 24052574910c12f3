"""Rules of the runtime, each by the line that keeps it: what patches, ControlNets and conditionings count on."""

import comfy.hooks
import comfy.sd
import comfy_extras.nodes_model_advanced as nodes_model_advanced
import nodes
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.models.weights import draw
from harness.node import call
from harness.sampling import counted, gcfg, guided, relative, sampled, stock
from harness.twins import hook

SMALL = 1e-4
ONE = dict(steps=1)


def lora(tiny, model, seed=3):
    return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, seed), 1.0, 0.0)[0]


def area(conditioning):
    return nodes.ConditioningSetArea().append(conditioning, 32, 64, 0, 0, 1.0)[0]


def hint():
    return draw("hint", (1, 64, 64, 3), 1)


def controlled(positive, negative, net, end=1.0):
    return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, net, hint(), 1.0, 0.0, end)


# --- attention patches of other packs -------------------------------------------------------------------------------


def keeping(model):
    """A patch that keeps what the first row of each role gives in the last batch, and what it kept."""
    kept, clone = {}, model.clone()

    def patch(q, k, v, extra):
        roles = extra["cond_or_uncond"]
        size = q.shape[0] // len(roles)
        kept.update({(extra["block"], role): q[roles.index(role) * size].clone() for role in set(roles)})
        return q, k, v
    clone.set_model_attn1_patch(patch)
    return clone, kept


@pytest.mark.parametrize("memory", ["enough", "for a pair"])
def test_the_first_row_of_a_role_is_the_samplers_and_its_batch_the_last(tiny, base, prompts, memory, monkeypatch):
    positive, negative = prompts
    if memory == "for a pair":
        monkeypatch.setattr(type(base.model), "memory_required",
                            lambda self, shape, cond_shapes=None: 0 if shape[0] <= 2 else 1e18)
    plain, expected = keeping(base)
    stock(plain, positive, negative, tiny.latent(), **ONE)
    patched, kept = keeping(base)
    links = [Link(model=lora(tiny, patched, seed)) for seed in (3, 4)]
    stock(apply(patched, links), positive, negative, tiny.latent(), **ONE)
    assert expected and kept.keys() == expected.keys()
    assert all(torch.allclose(kept[at], expected[at], atol=1e-5) for at in expected)


def test_a_network_with_a_forward_of_a_packs_sees_pairs(tiny, base, prompts):
    """As the NAG pack puts it there for a run: it makes one prediction out of a positive and a negative."""
    positive, negative = prompts
    links = [Link(conditioning=tiny.conditioning(3)), Link(model=lora(tiny, base))]
    expected = gcfg(base, positive, negative, tiny.latent(), links=links)
    seen, network = [], base.model.diffusion_model

    def forward(self, *args, transformer_options, **kwargs):
        seen.append(list(transformer_options["cond_or_uncond"]))
        return type(self).forward(self, *args, transformer_options=transformer_options, **kwargs)
    network.forward = forward.__get__(network)
    try:
        result = gcfg(base, positive, negative, tiny.latent(), links=links)
    finally:
        del network.forward
    assert relative(result, expected) < 1e-3
    assert len(seen) == 3 * 4 and all(sorted(roles) == [0, 1] for roles in seen)


def on_guided_rows(out, extra):
    """An attention patch that acts on the guided row of a pair, as an image prompt does."""
    guided = torch.tensor([role == 0 for role in extra["cond_or_uncond"]])
    rows = guided.repeat_interleave(out.shape[0] // len(guided))
    return out + 0.5 * rows.view(-1, *[1] * (out.ndim - 1)) * out.flip(-1)


def test_the_unconditional_of_a_guider_without_a_positive_is_unguided(tiny, base, concept, prompts):
    _, negative = prompts
    base.set_model_attn2_output_patch(on_guided_rows)
    d0 = stock(base, *prompts, tiny.latent(), cfg=0.0, **ONE)
    dc = stock(concept, negative, negative, tiny.latent(), cfg=1.0, **ONE)
    result = guided(Guider(base, negative, [Link(model=concept, scale=1.5)]), tiny.latent(), **ONE)
    assert relative(result, d0 + 1.5 * (dc - d0)) < 1e-4


def test_what_a_guidance_is_measured_from_is_unguided_for_its_models_patches(tiny, base, concept, prompts):
    positive, negative = prompts
    concept.set_model_attn2_output_patch(on_guided_rows)
    link = Link(model=concept, conditioning=positive, scale=1.5, reference="custom", reference_model=concept)
    towards, origin = (stock(concept, positive, negative, tiny.latent(), cfg=cfg, **ONE) for cfg in (1.0, 0.0))
    plain = gcfg(base, positive, negative, tiny.latent(), **ONE)
    result = gcfg(base, positive, negative, tiny.latent(), links=[link], **ONE)
    assert relative(result, plain + 1.5 * (towards - origin)) < 1e-4


# --- ControlNets: state of their own for each model -----------------------------------------------------------------


@pytest.mark.parametrize("nets", [1, 2])
def test_the_range_of_a_controlnet_is_in_each_models_own_noise_levels(tiny, base, prompts, nets):
    """At a noise level between the two that half of the sampling means, on its own and behind another ControlNet."""
    positive, negative = prompts
    other = call(nodes_model_advanced.ModelSamplingDiscrete, tiny.sd15(2), "eps", True)[0]  # zsnr: other noise levels
    ends = [float(m.get_model_object("model_sampling").percent_to_sigma(0.5)) for m in (base, other)]
    assert abs(ends[0] - ends[1]) > 1e-3
    sigmas = torch.tensor([sum(ends) / 2, 0.0])
    given = controlled(positive, negative, tiny.controlnet(1), end=0.5)
    if nets == 2:
        given = controlled(*given, tiny.controlnet(2))

    def result(positive, negative, *links):
        guider = Guider(base, negative, [Link(conditioning=positive, scale=2.5), *links])
        return sampled(guider, tiny.latent(seed=7), sigmas)
    expected = result(*given)
    assert relative(result(*given, Link(model=other, scale=SMALL)), expected) < 1e-2
    always = controlled(positive, negative, tiny.controlnet(1))
    always = controlled(*always, tiny.controlnet(2)) if nets == 2 else always
    assert (relative(result(*always), expected) > 0.05) == (ends[0] > ends[1])  # within the base's range, or outside


def test_a_twin_takes_every_controlnet_of_a_conditioning(tiny, base, prompts):
    positive, negative = controlled(*controlled(*prompts, tiny.controlnet(1)), tiny.controlnet(2))
    expected = stock(base, positive, negative, tiny.latent(), **ONE)
    assert relative(gcfg(base, positive, negative, tiny.latent(), tiny.sd15(1), **ONE), expected) < 1e-4


def test_hooks_that_a_controlnet_brings_change_on_every_model(tiny, base, prompts):
    positive, negative = prompts
    twin, net = tiny.sd15(1), controlled(positive, [], tiny.controlnet())[0]
    net[0][1]["control"].extra_hooks = hook("sd15", positive, True)[0][1]["hooks"]
    normal = dict(scheduler="normal", steps=4)
    expected = stock(base, net, negative, tiny.latent(), **normal)
    links = [Link(model=twin, conditioning=net, reference="previous guidance")]
    assert relative(gcfg(base, net, negative, tiny.latent(), links=links, **normal), expected) < 1e-4
    plain = controlled(positive, [], tiny.controlnet())[0]
    assert relative(stock(base, plain, negative, tiny.latent(), **normal), expected) > 1e-3


def test_one_controlnet_on_two_conditionings_stays_one(tiny, base, concept, prompts):
    """The host puts rows of one ControlNet into one batch."""
    positive, negative = controlled(*prompts, tiny.controlnet())
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, tiny.latent(), links=[
            Link(model=concept), Link(model=concept, conditioning=positive)])
    assert calls == [(1, 2), (0, 2)] * 4


# --- what a guidance is measured from, and where --------------------------------------------------------------------


def test_the_difference_that_a_guidance_is_perpendicular_to_is_paired_too(tiny, base, prompts):
    """With an old ControlNet, which the host gives to the negative as well."""
    positive, negative = prompts
    style = tiny.conditioning(3)
    fog = nodes.ControlNetApply().apply_controlnet(tiny.conditioning(4), tiny.controlnet(), hint(), 1.0)[0]
    d = {c: stock(base, fog, negative, tiny.latent(), cfg=c, **ONE) for c in (1.0, 0.0)}
    d0, ds = (stock(base, c, negative, tiny.latent(), cfg=1.0, **ONE) for c in (negative, style))
    across = d[1.0] - d[0.0]
    expected = (ds - d0) - ((ds - d0) * across).sum() / across.square().sum() * across
    result = gcfg(base, positive, negative, tiny.latent(), **ONE, links=[
        Link(conditioning=style, perpendicular_to=Link(conditioning=fog))])
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), **ONE) + expected) < 1e-4


def both_halves(conditioning):
    return area(conditioning) + nodes.ConditioningSetArea().append(conditioning, 32, 64, 32, 0, 1.0)[0]


def the_rest_by_default(conditioning):
    """Where a default acts the host finds out by itself, whatever its own mask is."""
    masked = nodes.ConditioningSetMask().append(conditioning, torch.eye(64)[None], "default", 1.0)[0]
    return comfy.hooks.set_default_conds_and_combine([area(conditioning)], [masked])[0]


@pytest.mark.parametrize("parts", [both_halves, the_rest_by_default])
def test_a_conditioning_of_parts_that_cover_the_picture_acts_everywhere(tiny, base, prompts, parts):
    positive, negative = prompts
    style = parts(tiny.conditioning(3))
    towards, origin = (stock(base, style, negative, tiny.latent(), cfg=cfg, **ONE) for cfg in (1.0, 0.0))
    plain = gcfg(base, positive, negative, tiny.latent(), **ONE)
    result = gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=style)], **ONE)
    assert relative(result, plain + towards - origin) < 1e-4


def test_a_mask_and_an_area_act_where_both_are(tiny, base, prompts):
    positive, negative = prompts
    mask = torch.zeros((1, 8, 8))
    mask[:, :4] = 1.0
    plain = gcfg(base, positive, negative, tiny.latent(), **ONE)
    result = gcfg(base, positive, negative, tiny.latent(), **ONE, links=[
        Link(conditioning=area(tiny.conditioning(3)), mask=mask)])
    changed = (result != plain).any(dim=1)
    assert changed[:, :4, :3].all() and not changed[:, 4:].any() and not changed[..., 5:].any()


def test_an_area_of_the_negative_limits_a_guidance_no_more_than_cfg(tiny, base, prompts):
    positive, negative = prompts
    copy = [[positive[0][0].clone(), {}]]  # the positive by another name
    expected = stock(base, positive, area(negative), tiny.latent(), cfg=3.5, **ONE)
    result = gcfg(base, positive, area(negative), tiny.latent(), links=[Link(conditioning=copy)], **ONE)
    assert relative(result, expected) < 1e-4


def test_a_guidance_acts_where_its_reference_exists(tiny, base, prompts):
    positive, negative = prompts
    plain = gcfg(base, positive, negative, tiny.latent(), **ONE)
    result = gcfg(base, positive, negative, tiny.latent(), **ONE, links=[Link(
        conditioning=tiny.conditioning(3), reference="custom", reference_conditioning=area(tiny.conditioning(4)))])
    assert torch.equal(result[..., 5:], plain[..., 5:])
    assert not torch.equal(result[..., :3], plain[..., :3])
