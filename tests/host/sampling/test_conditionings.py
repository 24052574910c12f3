"""What a conditioning may carry: areas, masks, ranges, ControlNets, batches; and what a latent may."""

import comfy.samplers
import node_helpers
import nodes
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from harness.sampling import counted, gcfg, relative, stock, through_guider


@pytest.fixture
def prompts(tiny):
    return tiny.conditioning(1), tiny.conditioning(2), tiny.conditioning(3)


def control_image(seed):
    return torch.rand((1, 64, 64, 3), generator=torch.manual_seed(seed))


def test_controlnet_on_one_guidance_only(tiny, base, prompts):
    positive, negative, style = prompts
    net = tiny.controlnet()
    controlled, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
        style, negative, net, control_image(1), 1.0, 0.0, 1.0)
    result = gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=controlled, scale=1.5)])
    without = gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=style, scale=1.5)])
    assert relative(result, without) > 0.01
    # the same three predictions, each by the host alone, in one Euler step
    one = dict(steps=1, cfg=1.0)
    d0, dp, dc = (stock(base, c, negative, tiny.latent(), **one) for c in (negative, positive, controlled))
    combined = gcfg(base, positive, negative, tiny.latent(), steps=1, links=[Link(conditioning=controlled, scale=1.5)])
    assert relative(combined, d0 + 2.5 * (dp - d0) + 1.5 * (dc - d0)) < 1e-4


def test_controlnet_on_the_positive_stays_there(tiny, base, concept, prompts):
    positive, negative, style = prompts
    controlled = nodes.ControlNetApply().apply_controlnet(positive, tiny.controlnet(), control_image(1), 1.0)[0]
    alone = stock(base, style, negative, tiny.latent(), steps=1, cfg=1.0)
    both = gcfg(base, controlled, negative, tiny.latent(), steps=1, links=[Link(conditioning=style, scale=1.0)])
    plain = gcfg(base, controlled, negative, tiny.latent(), steps=1)
    uncontrolled = nodes.ControlNetApply().apply_controlnet(negative, tiny.controlnet(), control_image(1), 1.0)[0]
    d0 = stock(base, uncontrolled, negative, tiny.latent(), steps=1, cfg=1.0)  # the host controls its negative, too
    assert relative(both, plain + (alone - d0)) < 1e-4


def test_area_and_mask_conditionings_act_only_there(tiny, base, prompts):
    positive, negative, style = prompts
    area = nodes.ConditioningSetArea().append(style, 32, 64, 0, 0, 1.0)[0]  # the left half of 64 x 64 pixels
    half = torch.zeros((1, 64, 64))
    half[:, :, :32] = 1.0
    masked = nodes.ConditioningSetMask().append(style, half, "default", 1.0)[0]
    plain = gcfg(base, positive, negative, tiny.latent(), steps=1)
    for conditioning in (area, masked):
        result = gcfg(base, positive, negative, tiny.latent(), steps=1, links=[Link(conditioning=conditioning)])
        assert torch.equal(result[..., 5:], plain[..., 5:])
        assert not torch.equal(result[..., :3], plain[..., :3])


def test_conditioning_outside_its_range_has_no_effect(tiny, base, prompts):
    positive, negative, style = prompts
    late = node_helpers.conditioning_set_values(style, {"start_percent": 0.5, "end_percent": 1.0})
    sampling = base.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 4)[:-1]
    inside = sum(float(s) <= sampling.percent_to_sigma(0.5) for s in sigmas)
    assert 0 < inside < 4
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), scheduler="normal", links=[Link(conditioning=late)])
    assert calls == [(0, 2)] * (4 - inside) + [(0, 3)] * inside
    window = gcfg(base, positive, negative, tiny.latent(), scheduler="normal",
                  links=[Link(conditioning=style, start=0.5)])
    assert torch.equal(result, window)


def test_mask_of_a_guidance(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    mask = torch.zeros((1, 8, 8))
    mask[:, :4] = 1.0
    plain = gcfg(base, positive, negative, tiny.latent(), steps=1)
    result = gcfg(base, positive, negative, tiny.latent(), steps=1, links=[Link(model=concept, mask=mask)])
    whole = gcfg(base, positive, negative, tiny.latent(), steps=1, links=[Link(model=concept)])
    assert torch.equal(result[..., 4:, :], plain[..., 4:, :])
    assert torch.equal(result[..., :4, :], whole[..., :4, :])
    large = torch.nn.functional.interpolate(mask[None], size=(64, 64), mode="nearest")[0]
    resized = gcfg(base, positive, negative, tiny.latent(), steps=1, links=[Link(model=concept, mask=large)])
    assert torch.equal(resized[..., 4:, :], plain[..., 4:, :])


def test_inpainting_and_partial_denoise(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    latent = tiny.latent(seed=7)
    mask = torch.zeros((1, 64, 64))
    mask[:, :32] = 1.0
    inpainted = gcfg(base, positive, negative, nodes.SetLatentNoiseMask().set_mask(latent, mask)[0], concept)
    assert torch.allclose(inpainted[..., 5:, :], latent["samples"][..., 5:, :], atol=1e-5)
    assert not torch.allclose(inpainted[..., :3, :], latent["samples"][..., :3, :], atol=1e-2)
    partial = gcfg(base, positive, negative, latent, concept, denoise=0.4)
    whole = gcfg(base, positive, negative, latent, concept)
    assert relative(partial, latent["samples"]) < relative(whole, latent["samples"])
    links = [Link(model=concept, scale=2.5)]
    assert torch.equal(partial, through_guider(base, positive, negative, latent, links, denoise=0.4))


def test_inpainting_model(tiny, prompts):
    positive, negative, _ = prompts
    base, concept = tiny.sd15(1, channels=9), tiny.sd15(2)
    latent = nodes.SetLatentNoiseMask().set_mask(tiny.latent(seed=7), torch.ones((1, 64, 64)))[0]
    result = gcfg(base, positive, negative, latent, concept)
    assert torch.isfinite(result).all()


def test_mixed_prompt_lengths(tiny, base, concept):
    positive, negative, style = (tiny.conditioning(seed, tokens) for seed, tokens in ((1, 77), (2, 154), (3, 231)))
    links = [Link(model=concept, conditioning=style), Link(conditioning=style, scale=0.5)]
    with counted(base, concept) as calls:
        gcfg(base, positive, negative, tiny.latent(), links=links)
    assert calls[:2] == [(1, 1), (0, 3)]


def test_batched_prompts(tiny, base, concept):
    positive, negative = tiny.conditioning(1, batch=2), tiny.conditioning(2, batch=2)
    latent = tiny.latent(batch=2, seed=3)
    together = gcfg(base, positive, negative, latent, concept, links=[Link(conditioning=tiny.conditioning(3, batch=2))])
    second = [[[c[0][0][1:], {}]] for c in (positive, negative, tiny.conditioning(3, batch=2))]
    alone = gcfg(base, second[0], second[1], {"samples": latent["samples"][1:], "batch_index": [1]}, concept,
                 links=[Link(conditioning=second[2])])
    assert relative(together[1:], alone) < 1e-3


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_architectures(tiny, family):
    width, pooled, channels = {"sdxl": (2048, 1280, 4), "sd3": (4096, 2048, 16)}[family]
    base, concept = (getattr(tiny, family)(seed) for seed in (1, 2))
    positive, negative, style = (tiny.conditioning(s, width=width, pooled=pooled) for s in (1, 2, 3))
    latent = tiny.latent(channels=channels)
    with counted(base, concept) as calls:
        result = gcfg(base, positive, negative, latent, concept, links=[Link(conditioning=style, scale=-0.5)])
    assert calls == [(1, 1), (0, 3)] * 4
    assert torch.isfinite(result).all()
    links = [Link(model=concept, scale=2.5), Link(conditioning=style, scale=-0.5)]
    assert torch.equal(result, through_guider(base, positive, negative, latent, links))
