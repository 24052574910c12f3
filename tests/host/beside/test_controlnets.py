"""Advanced-ControlNet on the sampler's conditionings and on a guidance's own: keyframes, weights, references."""

import sys

import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.models import files, motion
from harness.models.weights import draw
from harness.sampling import relative, stock

PACK, CFG = "ComfyUI-Advanced-ControlNet", 2.5


@pytest.fixture
def controlled(tiny, node):
    """A pair of conditionings with an advanced ControlNet, whose weights are less on the negative and fade over frames.

    The pack tells the negative by its role in the batch, and frames by their place in the part of a conditioning."""
    net = tiny.controlnet(seed=4)

    def to(positive, negative, strength=3.0):
        weights, _ = node(PACK, "ACN_ScaledSoftControlNetWeights", base_multiplier=0.9, uncond_multiplier=0.2)
        frames, = node(PACK, "LatentKeyframeTiming", batch_index_from=0, batch_index_to_excl=3, strength_from=0.2,
                       strength_to=1.0, interpolation="linear")
        hint = draw("hint", (1, 64, 64, 3), 1).abs().clamp(max=1.0)
        return node(PACK, "ACN_AdvancedControlNetApply_v2", positive=positive, negative=negative, control_net=net,
                    image=hint, strength=strength, weights_override=weights, latent_kf_override=frames)
    return to


@pytest.fixture
def one(tiny):
    """One step over three frames; with cfg 1 the prediction for the positive, with 0 that for the negative."""
    def step(model, positive, negative, cfg=1.0):
        return stock(model, positive, negative, tiny.latent(batch=3, seed=9), cfg=cfg, steps=1)
    return step


@pytest.mark.parametrize("on", ["the sampler", "a guidance", "both"])
def test_control(tiny, base, concept, prompts, controlled, one, close, on):
    """Each prediction has the ControlNet that its own conditioning carries, with the weights of its role."""
    plain, style = prompts, tiny.conditioning(3)
    positive, negative = prompts if on == "a guidance" else controlled(*prompts)
    own = style if on == "the sampler" else controlled(style, negative)[0]
    alone = one(base, positive, negative, CFG)
    assert (on == "a guidance") == (relative(alone, one(base, *plain, CFG)) < 1e-6)
    d0, dc = one(base, positive, negative, 0.0), one(concept, positive, negative, 0.0)
    ds = one(base, own, negative)
    assert (on == "the sampler") == (relative(ds, one(base, style, negative)) < 1e-6)
    links = [Link(model=concept, scale=1.5), Link(conditioning=own, scale=0.5)]
    result = one(apply(base, links), positive, negative, CFG)
    close(PACK, "Apply Advanced ControlNet, frames and weights", on,
          relative(result, alone + 1.5 * (dc - d0) + 0.5 * (ds - d0)))
    order = one(apply(base, links[::-1]), positive, negative, CFG)
    assert relative(order, result) < 1e-5


@pytest.fixture
def referring(tiny, node, monkeypatch):
    """A conditioning with a reference picture, which the pack reads by injecting into the network for a whole run.

    The noise that it puts on the picture comes from torch's global generator, in the order of the host's batches: none.
    """
    vae = comfy.sd.VAE(sd=files.autoencoder(0))

    def to(conditioning):
        picture = draw("picture", (1, 64, 64, 3), 1).abs().clamp(max=1.0)
        net, = node(PACK, "ACN_ReferenceControlNet", reference_type="reference_attn")
        module = sys.modules[type(net).__module__]
        noised = module.ref_noise_latents
        monkeypatch.setattr(module, "ref_noise_latents", lambda x, sigma, noise: noised(x, sigma, torch.zeros_like(x)))
        picture, = node(PACK, "ACN_ReferencePreprocessor", image=picture, vae=vae, latent_size=tiny.latent(batch=3))
        return node(PACK, "ACN_AdvancedControlNetApplySingle_v2", conditioning=conditioning, control_net=net,
                    image=picture, strength=1.0)[0]
    return to


def test_reference(tiny, wide, prompts, referring, one, close):
    """On the sampler's positive it acts there and on the negative, and on nothing that a chain adds."""
    style, (plain, negative) = tiny.conditioning(3), prompts
    positive = referring(plain)
    styled, _ = comfy.sd.load_lora_for_models(wide, None, tiny.lora(wide), 1.0, 0.0)
    alone = one(wide, positive, negative, CFG)
    assert relative(alone, one(wide, plain, negative, CFG)) > 1e-2, "the reference does nothing here"
    d0, ds, dl = one(wide, positive, negative, 0.0), one(wide, style, negative), one(styled, style, negative)
    links = [Link(conditioning=style, scale=0.5), Link(model=styled, conditioning=style, scale=1.5)]
    result = one(apply(wide, links), positive, negative, CFG)
    close(PACK, "Reference ControlNet", "the sampler's positive",
          relative(result, alone + 0.5 * (ds - d0) + 1.5 * (dl - d0)))


def test_reference_on_a_guidance_of_the_base_is_refused(tiny, base, prompts, referring, one, refused):
    """It would do nothing: the pack looks for it on the sampler's conditionings."""
    with pytest.raises(ValueError, match="Style: its conditioning carries a ControlNet that takes over a whole"):
        one(apply(base, [Link(conditioning=referring(tiny.conditioning(3)), scale=0.5, name="Style")]), *prompts, CFG)
    refused(PACK, "Reference ControlNet", "a guidance on the base")


def test_reference_on_a_concept_of_its_own_weights(tiny, base, prompts, referring, one, close):
    """The pack injects into the concept's network, and only there."""
    concept, (positive, negative), plain = motion.sd15(2, width=32), prompts, tiny.conditioning(3)
    style = [[text, {**options, "control_apply_to_uncond": False}] for text, options in referring(plain)]
    ds, d0 = one(concept, style, negative), one(base, negative, negative)
    assert relative(ds, one(concept, plain, negative)) > 1e-2, "the reference does nothing here"
    result = one(apply(base, [Link(model=concept, conditioning=style, scale=1.5)]), positive, negative, CFG)
    close(PACK, "Reference ControlNet", "a concept of its own weights",
          relative(result, one(base, positive, negative, CFG) + 1.5 * (ds - d0)))


def test_reference_on_what_a_concept_is_measured_from_is_refused(tiny, base, prompts, referring, one, refused):
    """Applied to both, it reaches the base's unconditional beside the concept's prompt, where it would do nothing."""
    style = referring(tiny.conditioning(3))
    assert style[0][1]["control_apply_to_uncond"]
    with pytest.raises(ValueError, match="Style: its conditioning carries a ControlNet that takes over a whole"):
        one(apply(base, [Link(model=motion.sd15(2, width=32), conditioning=style, name="Style")]), *prompts, CFG)
    refused(PACK, "Reference ControlNet", "a concept, measured from the base's unconditional with it")
