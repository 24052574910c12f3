"""Masks of subjects: other sizes than the picture's, one for each picture and for each frame, overlapping."""

import comfy.sd
import torch
import torch.nn.functional as F

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.nodes.attention import GCFGBlendMasks
from harness.models.families import FAMILIES
from harness.oracle import denoised, euler
from harness.sampling import gcfg, relative

CLOSE = 2e-4


def subject(tiny, base, whole, mask=None, scale=1.5):
    """A LoRA with a prompt of its own, measured from the base under the prompt of the whole picture."""
    model = comfy.sd.load_lora_for_models(base, None, tiny.lora(base, 3), 1.0, 0.0)[0]
    return Link(model=model, conditioning=tiny.conditioning(6), scale=scale, reference="custom",
                reference_conditioning=whole, mask=mask)


def test_another_size_and_one_for_each_picture(tiny, base, prompts):
    whole, null = prompts
    masks = torch.zeros(2, 50, 70)
    masks[0, :, :30], masks[1, 25:] = 1, 1
    latent = tiny.latent(batch=2, height=8, width=12)
    result = gcfg(base, whole, null, latent, links=[subject(tiny, base, whole, masks)])
    plain, own = tiny.sd15(1), subject(tiny, tiny.sd15(1), whole)
    cells = F.interpolate(masks[:, None], (8, 12), mode="bilinear")

    def step(x, sigma):
        d0, dc = (denoised(plain, x, text, sigma) for text in (null, whole))
        return d0 + 2.5 * (dc - d0) + 1.5 * cells * (denoised(own.model, x, own.conditioning, sigma) - dc)
    assert relative(result, euler(plain, step, latent)) < CLOSE


def test_what_two_masks_share_counts_once(tiny, base, prompts):
    """The same subject behind two masks that overlap and cover the picture is that subject without a mask."""
    left, right = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    left[..., :48], right[..., 16:] = 1, 1
    one, two, *_ = GCFGBlendMasks.execute(left, right, 8.0).args
    assert torch.allclose(one + two, torch.ones(1, 64, 64), atol=1e-6)
    whole, null = prompts
    apart = gcfg(base, whole, null, tiny.latent(), links=[subject(tiny, base, whole, mask) for mask in (one, two)])
    assert relative(apart, gcfg(base, whole, null, tiny.latent(), links=[subject(tiny, base, whole)])) < CLOSE


def test_a_mask_for_each_frame(tiny):
    """Three frames: the subject in the left half, nowhere, everywhere."""
    family = FAMILIES["Wan 2.1 text to video"]
    base, concept = family.model(1), family.model(2)
    whole, null = family.conditioning(1), family.conditioning(2)
    masks = torch.zeros(3, 64, 64)
    masks[0, :, :32], masks[2] = 1, 1

    def sampled(*links):
        return gcfg(base, whole, null, family.latents(), links=links, steps=1)
    link = {"model": concept, "conditioning": whole, "scale": 1.5}
    found, plain, everywhere = sampled(Link(**link, mask=masks)), sampled(), sampled(Link(**link))
    assert relative(everywhere, plain) > 1e-2
    assert torch.equal(found[:, :, 1], plain[:, :, 1]) and torch.equal(found[:, :, 0, :, 4:], plain[:, :, 0, :, 4:])
    assert relative(found[:, :, 2], everywhere[:, :, 2]) < 1e-5
    assert relative(found[:, :, 0, :, :4], everywhere[:, :, 0, :, :4]) < 1e-5
