"""Shared attention in the host, against references that run by themselves and hand their tokens over."""

import pytest
import torch

from gcfg_pack.gcfg.host.attention.shared import References, share_attention
from gcfg_pack.gcfg.host.sampling.chain import Link
from harness.models.families import FAMILIES
from harness.oracle import denoised
from harness.sampling import counted, gcfg, relative, stock

SIGMA = 3.0


def by_hand(model, x, reference, noise, conditioning):
    """The same with a U-Net whose attn1 inputs of the reference are recorded first and then joined."""
    sampling = model.get_model_object("model_sampling")
    noised = sampling.noise_scaling(torch.tensor([SIGMA]), noise.clone(), model.model.process_latent_in(reference))
    recorded, taken = [], []

    def record(n, context, value, options):
        recorded.append(n[:1].clone())
        return n, context, value

    def join(n, context, value, options):
        both = torch.cat([context, recorded[len(taken)].expand(n.shape[0], -1, -1)], dim=1)
        taken.append(1)
        return n, both, both

    recorder, joiner = model.clone(), model.clone()
    recorder.set_model_attn1_patch(record)
    denoised(recorder, noised, conditioning, SIGMA)
    joiner.set_model_attn1_patch(join)
    result = denoised(joiner, x, conditioning, SIGMA)
    assert len(taken) == len(recorded) > 0
    return result


@pytest.fixture
def reference(tiny):
    return tiny.latent(seed=8)["samples"]


def test_a_unet_attends_to_the_reference(tiny, base, text, reference):
    x = SIGMA * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(4))
    shared = share_attention(base, References(reference, seed=4))
    expected = by_hand(base, x, reference, noise, text)
    assert relative(denoised(shared, x, text, SIGMA), expected) < 2e-5
    assert relative(denoised(base, x, text, SIGMA), expected) > 1e-3


def test_the_reference_runs_in_the_pictures_batch(tiny, base, prompts, reference):
    shared = share_attention(base, References(reference))
    with counted(base) as calls:
        stock(shared, *prompts, tiny.latent())
    assert calls == [(0, 4)] * 4


def test_outside_its_window_nothing_changes(tiny, base, prompts, reference):
    shared = share_attention(base, References(reference, end=0.1))
    plain = stock(base, *prompts, tiny.latent())
    assert torch.equal(stock(share_attention(base, References(reference, start=1.0)), *prompts, tiny.latent()), plain)
    with counted(base) as calls:
        stock(shared, *prompts, tiny.latent())
    assert [rows for _, rows in calls] == [4, 2, 2, 2]


def test_what_the_mask_hides_is_not_looked_at(tiny, base, text, reference):
    x = SIGMA * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    masked = denoised(share_attention(base, References(reference, left)), x, text, SIGMA)
    whole = denoised(share_attention(base, References(reference)), x, text, SIGMA)
    all_ones = denoised(share_attention(base, References(reference, torch.ones(1, 8, 8))), x, text, SIGMA)
    assert relative(all_ones, whole) < 1e-6
    assert relative(masked, whole) > 1e-3


def test_as_one_guidance_among_others(tiny, base, prompts, reference):
    """Its difference, scaled: at scale 1 measured from the same prompt it is the shared model's own picture."""
    positive, negative = prompts
    shared = share_attention(base, References(reference))
    link = Link(model=shared, conditioning=positive, scale=1.0, reference="custom", reference_conditioning=positive)
    guided = gcfg(base, positive, negative, tiny.latent(), control_scale=1.0, links=[link])
    assert relative(guided, stock(shared, positive, negative, tiny.latent(), cfg=1.0)) < 2e-4
    without = gcfg(base, positive, negative, tiny.latent(), control_scale=1.0)
    assert relative(guided, without) > 1e-3


@pytest.mark.parametrize("name", ["Stable Diffusion 3.5", "Flux.1"])
def test_in_a_joint_attention_only_picture_tokens_are_shared(tiny, name):
    model, text = FAMILIES[name].model(1), FAMILIES[name].conditioning(1)
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = tiny.latent(channels=16, seed=3)["samples"]
    lengths = []

    def watch(function, q, k, v, *args, **kwargs):
        lengths.append((q.shape[0], q.shape[-2], k.shape[-2]))
        return function(q, k, v, *args, **kwargs)
    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = watch
    shared = share_attention(watched, References(latents))
    assert relative(denoised(shared, x, text, sigma=0.9), denoised(model, x, text, sigma=0.9)) > 1e-4
    assert {entry for entry in lengths if entry[1] == 8 + 16} == {(1, 24, 24), (1, 24, 24 + 16)}


@pytest.mark.parametrize("change, message", [
    (lambda tiny, m: share_attention(m, References(torch.zeros(1, 16, 8, 8))), "encode the reference picture"),
    (lambda tiny, m: share_attention(m, References(torch.zeros(2, 4, 8, 8), torch.ones(3, 8, 8))), "3 masks for 2"),
])
def test_refusals(tiny, base, change, message):
    with pytest.raises(ValueError, match=message):
        change(tiny, base)


def test_another_size_is_refused_with_the_size_to_take(tiny, base, prompts, reference):
    with pytest.raises(ValueError, match="128 x 64 pixels"):
        stock(share_attention(base, References(reference)), *prompts, tiny.latent(height=8, width=16))
