"""What the papers of docs/PAPERS.md give, as chains of guidances, each against a loop written by hand.

Every chain holds the twin property, too: with the base in the place of the subject it changes nothing.
"""

import comfy.samplers
import comfy.sd
import nodes
import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras import nodes_custom_sampler as custom

from gcfg_pack.gcfg.attention.regions import blended
from gcfg_pack.gcfg.host.recipes.methods import Sockets, chain_for
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from harness.node import call
from harness.oracle import denoised, euler
from harness.sampling import counted, gcfg, relative

WHOLE, FIRST, SECOND, NULL = 1, 6, 7, 2  # seeds of the prompts
CLOSE = 2e-4
"""Largest difference from the loop by hand, in standard deviations."""


def with_lora(tiny, model, seed, strength=1.0):
    return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, seed), strength, 0.0)[0]


@pytest.fixture
def text(tiny):
    return {seed: tiny.conditioning(seed) for seed in (WHOLE, FIRST, SECOND, NULL)}


def sampled(base, text, links, tiny, control=2.5, **options):
    return gcfg(base, text[WHOLE], text[NULL], tiny.latent(), control_scale=control, links=links, **options)


def halves(feather=2.0):
    """Two overlapping halves of a picture of 64 pixels, blended: (1, 64, 64) each."""
    masks = torch.zeros(1, 2, 64, 64)
    masks[:, 0, :, :40], masks[:, 1, :, 24:] = 1, 1
    return blended(masks, feather).unbind(1)


def cells(mask):
    """A mask on the cells of the latent, (1, 1, 8, 8), as the host scales masks."""
    return F.interpolate(mask[:, None], (8, 8), mode="bilinear")


def refined(model, prompt, text, mask=None, scale=1.5, **options):
    """A subject, measured from the base under the prompt of the whole picture: what it adds to that."""
    return Link(model=model, conditioning=text[prompt], scale=scale, reference="custom",
                reference_conditioning=text[WHOLE], mask=mask, **options)


def test_two_subjects_two_loras(tiny, base, text):
    """Concept Conductor, MagicTailor, MagiCapture: each subject in its region, the layout kept by the base."""
    left, right = halves()
    first, second = with_lora(tiny, base, 3), with_lora(tiny, base, 4)
    with counted(base) as calls:
        result = sampled(base, text, [refined(first, FIRST, text, left), refined(second, SECOND, text, right)], tiny)
    assert calls == [(0, 4)] * 4  # one copy of the weights, one batch a step

    plain, one, two = tiny.sd15(1), with_lora(tiny, tiny.sd15(1), 3), with_lora(tiny, tiny.sd15(1), 4)

    def step(x, sigma):
        null, whole = (denoised(plain, x, text[key], sigma) for key in (NULL, WHOLE))
        return (null + 2.5 * (whole - null) + cells(left) * 1.5 * (denoised(one, x, text[FIRST], sigma) - whole)
                + cells(right) * 1.5 * (denoised(two, x, text[SECOND], sigma) - whole))
    assert relative(result, euler(plain, step, tiny.latent())) < CLOSE


def test_a_subject_equal_to_the_base_changes_nothing(tiny, base, text):
    left, right = halves()
    twin = with_lora(tiny, base, 3, strength=0.0)
    links = [refined(twin, WHOLE, text, left), refined(base.clone(), WHOLE, text, right)]
    assert relative(sampled(base, text, links, tiny), sampled(base, text, [], tiny)) < 1e-5


def test_what_no_region_covers_is_the_bases(tiny, base, text):
    left = torch.zeros(1, 64, 64)
    left[..., :24] = 1
    link = refined(with_lora(tiny, base, 3), FIRST, text, left)
    result = sampled(base, text, [link], tiny, steps=1)
    plain = sampled(base, text, [], tiny, steps=1)
    assert torch.equal(result[..., 4:], plain[..., 4:]) and not torch.equal(result[..., :2], plain[..., :2])


def test_words_refined_from_their_class(tiny, base, text):
    """Cross Initialization, CoRe, ConceptExpress, SeFi-IDE, Break-A-Scene: a learned word, measured from its class."""
    result = sampled(base, text, [refined(None, FIRST, text)], tiny)

    def step(x, sigma):
        null, whole, word = (denoised(base, x, text[key], sigma) for key in (NULL, WHOLE, FIRST))
        return null + 2.5 * (whole - null) + 1.5 * (word - whole)
    assert relative(result, euler(base, step, tiny.latent())) < CLOSE


def test_class_first_subject_later(tiny, base, text):
    """FastComposer's delayed conditioning, DreamSalon, ProSpect: the layout by the class, then the subject."""
    tuned = with_lora(tiny, base, 3)
    link = refined(tuned, FIRST, text, start=0.4, scale=2.5)
    with counted(base) as calls:
        result = sampled(base, text, [link], tiny, scheduler="normal")
    plain, own = tiny.sd15(1), with_lora(tiny, tiny.sd15(1), 3)
    begin = base.get_model_object("model_sampling").percent_to_sigma(0.4)

    def step(x, sigma):
        null, whole = (denoised(plain, x, text[key], sigma) for key in (NULL, WHOLE))
        subject = 2.5 * (denoised(own, x, text[FIRST], sigma) - whole) if sigma <= begin else 0.0
        return null + 2.5 * (whole - null) + subject
    assert relative(result, euler(plain, step, tiny.latent(), scheduler="normal")) < CLOSE
    assert [rows for _, rows in calls][0] == 2 and [rows for _, rows in calls][-1] == 3


def with_picture(model, seed):
    """IP-Adapter's decoupled attention (arXiv 2308.06721, eq. 5) to a picture's tokens, for positive rows alone."""
    tokens = torch.randn((2, 1, 4, 64), generator=torch.Generator().manual_seed(seed))

    def both(q, k, v, options):
        found, kinds = optimized_attention(q, k, v, options["n_heads"]), options["cond_or_uncond"]
        rows = torch.tensor([kind == 0 for kind in kinds]).repeat_interleave(len(q) // len(kinds))
        keys, values = tokens[..., :q.shape[-1]].expand(2, len(q), -1, -1)
        return found + rows.view(-1, 1, 1) * optimized_attention(q, keys, values, options["n_heads"])
    clone = model.clone()
    clone.set_model_attn2_replace(both, "middle", 0)
    return clone


def test_image_prompts_each_on_a_guidance_of_its_own(tiny, base, text):
    """MIP-Adapter, InstantID, FACT, PhotoVerse: a picture's part of the prompt in its place, the base left clean."""
    left, right = halves()
    links = [refined(with_picture(base, 8), WHOLE, text, left), refined(with_picture(base, 9), WHOLE, text, right)]
    result = sampled(base, text, links, tiny)
    plain, one, two = tiny.sd15(1), with_picture(tiny.sd15(1), 8), with_picture(tiny.sd15(1), 9)

    def step(x, sigma):
        null, whole = (denoised(plain, x, text[key], sigma) for key in (NULL, WHOLE))
        return (null + 2.5 * (whole - null) + cells(left) * 1.5 * (denoised(one, x, text[WHOLE], sigma) - whole)
                + cells(right) * 1.5 * (denoised(two, x, text[WHOLE], sigma) - whole))
    assert relative(result, euler(plain, step, tiny.latent())) < CLOSE
    assert relative(result, sampled(base, text, [], tiny)) > 1e-2


def test_an_identity_net_that_reads_the_face(tiny, base, text):
    """InstantID (arXiv 2401.07519): attention to a face, and a ControlNet that reads it, on one guidance."""
    image = torch.rand((1, 64, 64, 3), generator=torch.manual_seed(1))
    person, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
        text[FIRST], text[NULL], tiny.controlnet(), image, 0.8, 0.0, 1.0)
    person[0][1]["cross_attn_controlnet"] = text[SECOND][0][0]
    without = [[person[0][0], {k: v for k, v in person[0][1].items() if k != "cross_attn_controlnet"}]]
    link = Link(model=with_picture(base, 8), conditioning=person, scale=1.5, reference="custom",
                reference_conditioning=text[WHOLE])
    result = sampled(base, text, [link], tiny)
    plain, own = tiny.sd15(1), with_picture(tiny.sd15(1), 8)

    def step(x, sigma, person=person):
        null, whole = (denoised(plain, x, text[key], sigma) for key in (NULL, WHOLE))
        return null + 2.5 * (whole - null) + 1.5 * (denoised(own, x, person, sigma) - whole)
    assert relative(result, euler(plain, step, tiny.latent())) < CLOSE
    assert relative(result, euler(plain, lambda x, sigma: step(x, sigma, without), tiny.latent())) > 1e-3


def test_controlnet_of_one_subject_with_a_personal_lora(tiny, base, text):
    """IdentityNet, PASD, Dual-Pivot Tuning: guided by its own picture, the base left alone."""
    image = torch.rand((1, 64, 64, 3), generator=torch.manual_seed(1))
    net = tiny.controlnet()
    controlled, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
        text[FIRST], text[NULL], net, image, 0.8, 0.0, 1.0)
    link = Link(model=with_lora(tiny, base, 3), conditioning=controlled, scale=1.5)
    result = sampled(base, text, [link], tiny)
    plain, own = tiny.sd15(1), with_lora(tiny, tiny.sd15(1), 3)

    def step(x, sigma):
        null, whole = (denoised(plain, x, text[key], sigma) for key in (NULL, WHOLE))
        return null + 2.5 * (whole - null) + 1.5 * (denoised(own, x, controlled, sigma) - null)
    assert relative(result, euler(plain, step, tiny.latent())) < CLOSE


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_a_tuned_model_with_personalization_guidance_and_a_found_noise(tiny, base, text, weight):
    """HiFi Tuner, PPD, JeDi; Golden Noise: the noise is any latent, as a NOISE for SamplerCustomAdvanced."""
    tuned = with_lora(tiny, base, 3)
    found = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(77))

    class Found:
        seed = 0

        def generate_noise(self, latent):
            return found
    sockets = Sockets(text[FIRST], None, base, tuned, 2.5, 0.0, weight)
    guider = Guider(base, text[NULL], chain_for("personalization guidance", sockets))
    sampling = base.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", 4)
    result = call(custom.SamplerCustomAdvanced, Found(), guider, comfy.samplers.sampler_object("euler"), sigmas,
                  tiny.latent())[0]["samples"]
    plain, own = tiny.sd15(1), with_lora(tiny, tiny.sd15(1), 3)
    between = with_lora(tiny, tiny.sd15(1), 3, strength=weight)
    x = sampling.noise_scaling(sigmas[0], found, torch.zeros_like(found), max_denoise=True)
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        reference = denoised(plain if weight == 0 else between, x, text[NULL], sigma)
        prediction = reference + 2.5 * (denoised(own, x, text[FIRST], sigma) - reference)
        x = x + (x - prediction) * ((after - sigma) / sigma)
    assert relative(result, base.model.process_latent_out(x)) < CLOSE
