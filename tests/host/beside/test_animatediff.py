"""AnimateDiff-Evolved: its context windows over frames, on the base, on a concept and on both.

Its motion modules have the sizes of real UNets only. Here frames see each other through a patch of three lines; without
one a window would not matter.
"""

import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import relative, stock, through_guider

PACK, WHAT = "ComfyUI-AnimateDiff-Evolved", "Use Evolved Sampling, context windows of 4 of 6 frames"
CFG = 2.5


def among_frames(model):
    """A MODEL whose frames (the batch) see their mean."""
    def mix(out, extra_options):
        frames = out.unflatten(0, (len(extra_options["cond_or_uncond"]), -1))
        return (frames + frames.mean(dim=1, keepdim=True)).flatten(0, 1)
    model = model.clone()
    model.set_model_attn1_output_patch(mix)
    return model


@pytest.fixture
def windows(node):
    """Gives a MODEL context windows."""
    def to(model):
        options, = node(PACK, "ADE_StandardStaticContextOptions", context_length=4, context_overlap=2)
        return node(PACK, "ADE_UseEvolvedSampling", model=model, context_options=options)[0]
    return to


@pytest.fixture
def one(tiny):
    """One step over six frames; with cfg 1 the prediction for the positive, with 0 that for the negative."""
    def step(model, positive, negative=None, cfg=1.0, sample=stock, **options):
        options = options if sample is through_guider else {"cfg": cfg}
        negative, latent = negative or tiny.conditioning(2), tiny.latent(batch=6, seed=9)
        return sample(model, positive, negative, latent, steps=1, **options)
    return step


def test_windows_on_the_base(tiny, base, concept, prompts, windows, one, close):
    positive, negative = prompts
    base, style = among_frames(base), tiny.conditioning(3)
    links = [Link(model=concept, scale=1.5), Link(conditioning=style, scale=0.5)]
    theirs = windows(base)
    alone = one(theirs, positive, negative, CFG)
    assert relative(alone, one(base, positive, negative, CFG)) > 1e-3, "windows do nothing here"
    d0, ds, dc = one(theirs, positive, negative, 0.0), one(theirs, style), one(concept, negative)
    expected = alone + 1.5 * (dc - d0) + 0.5 * (ds - d0)
    for where, model in (("before", apply(theirs, links)), ("after", windows(apply(base, links)))):
        close(PACK, WHAT, f"the base, {where} Apply GCFG", relative(one(model, positive, negative, CFG), expected))
    guided = one(theirs, positive, negative, sample=through_guider, links=links, scale=CFG)
    close(PACK, WHAT, "the base, GCFG Guider", relative(guided, expected))


def test_windows_on_the_base_and_its_lora_clone(tiny, base, prompts, windows, one, close):
    """AnimateDiff first, then the branch: base and concept see the same frames, in one batch."""
    positive, negative = prompts
    theirs = windows(among_frames(base))
    styled, _ = comfy.sd.load_lora_for_models(theirs, None, tiny.lora(base), 1.0, 0.0)
    d0, dc = one(theirs, positive, negative, 0.0), one(styled, positive, negative, 0.0)
    expected = one(theirs, positive, negative, CFG) + 1.5 * (dc - d0)
    result = one(apply(theirs, [Link(model=styled, scale=1.5)]), positive, negative, CFG)
    close(PACK, WHAT, "the base and a LoRA clone of it", relative(result, expected))


@pytest.mark.parametrize("both", [False, True], ids=["concept", "both"])
def test_windows_on_a_concept_of_its_own_are_refused(base, concept, prompts, windows, one, refused, both):
    """On one prediction they have nothing of the run that they need; the sampler is as before afterwards."""
    positive, negative = prompts
    base, theirs = among_frames(base), windows(among_frames(concept))
    model = windows(base) if both else base
    before = one(base, positive, negative, CFG)
    with pytest.raises(ValueError, match="Concept: its model carries a pack that takes over"):
        one(apply(model, [Link(model=theirs, scale=1.5, name="Concept")]), positive, negative, CFG)
    refused(PACK, WHAT, "base and concept" if both else "a concept")
    assert torch.equal(one(base, positive, negative, CFG), before)
