"""Impact Pack's samplers, which sample region by region and step by step, with GCFG on their MODELs."""

import comfy.samplers
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import relative

PACK, CFG, STEPS = "ComfyUI-Impact-Pack", 2.5, 3


def by_hand(model, concept, scale):
    """A MODEL with a concept guidance that is nothing but a post-CFG function."""
    def add(args):
        if concept.model.current_patcher is None:  # the sampler cleans up after each of its runs
            comfy.model_management.load_models_gpu([concept])
            concept.pre_run()
        options = {"transformer_options": {"sample_sigmas": args["sigma"]}}
        dc, = comfy.samplers.calc_cond_batch(concept.model, [args["uncond"]], args["input"], args["sigma"], options)
        return args["denoised"] + scale * (dc - args["uncond_denoised"])
    model = model.clone()
    model.set_model_sampler_post_cfg_function(add)
    return model


@pytest.fixture
def pair(base, concept, prompts, node):
    """Two of the pack's samplers, of the whole picture and of its right half, on MODELs of a given kind."""
    def make(kind, whole, part):
        samplers = []
        for scale in (whole, part):
            model = kind(base, scale)
            pipe, = node(PACK, "ToBasicPipe", model=model, clip=None, vae=None, positive=prompts[0],
                         negative=prompts[1])
            samplers += node(PACK, "KSamplerAdvancedProvider", cfg=CFG, sampler_name="euler", scheduler="karras",
                             basic_pipe=pipe)
        return samplers
    return make


def kinds(concept):
    """GCFG, and the same by hand."""
    return {"gcfg": lambda model, scale: apply(model, [Link(model=concept, scale=scale)]),
            "hand": lambda model, scale: by_hand(model, concept, scale)}


def test_regional_sampler(tiny, base, concept, prompts, pair, node, close):
    """Another scale of the concept in each half: what a region's sampler adds stays in it."""
    half = torch.zeros(1, 64, 64)
    half[..., 32:] = 1.0

    def run(kind, whole=1.5, part=3.0):
        base_sampler, region = pair(kinds(concept)[kind], whole, part)
        prompts_, = node(PACK, "RegionalPrompt", mask=half, advanced_sampler=region)
        return node(PACK, "RegionalSampler", seed=5, seed_2nd=0, seed_2nd_mode="ignore", steps=STEPS, base_only_steps=1,
                    denoise=1.0, samples=tiny.latent(seed=9), base_sampler=base_sampler, regional_prompts=prompts_,
                    overlap_factor=0, restore_latent=True)[0]["samples"]
    expected = run("hand")
    assert relative(run("hand", part=1.5), expected) > 1e-3, "the region does nothing here"
    close(PACK, "RegionalSampler", "the MODELs of both samplers", relative(run("gcfg"), expected))


def test_sampler_for_a_mask(tiny, concept, prompts, base, node, close):
    """TwoSamplersForMask: one sampler beside the mask, then the other within it."""
    half = torch.zeros(1, 64, 64)
    half[..., 32:] = 1.0

    def run(kind):
        samplers = []
        for scale in (1.5, 3.0):
            model = kinds(concept)[kind](base, scale)
            pipe, = node(PACK, "ToBasicPipe", model=model, clip=None, vae=None, positive=prompts[0],
                         negative=prompts[1])
            samplers += node(PACK, "KSamplerProvider", seed=5, steps=STEPS, cfg=CFG, sampler_name="euler",
                             scheduler="karras", denoise=1.0, basic_pipe=pipe)
        return node(PACK, "TwoSamplersForMask", latent_image=tiny.latent(seed=9), base_sampler=samplers[0],
                    mask_sampler=samplers[1], mask=half)[0]["samples"]
    close(PACK, "TwoSamplersForMask", "the MODELs of both samplers", relative(run("gcfg"), run("hand")))
