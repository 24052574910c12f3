"""AnimateDiff-Evolved: its context windows over frames, on the base, on a concept and on both.

Its motion modules have the sizes of real UNets only. Here frames see each other through a patch of three lines; without
one a window would not matter.
"""

import pytest

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


def test_windows_on_base_and_concept(tiny, base, concept, prompts, windows, one, close):
    positive, negative = prompts
    base, theirs = windows(among_frames(base)), windows(among_frames(concept))
    d0, dc = one(base, positive, negative, 0.0), one(theirs, positive, negative, 0.0)
    expected = one(base, positive, negative, CFG) + 1.5 * (dc - d0)
    result = one(apply(base, [Link(model=theirs, scale=1.5)]), positive, negative, CFG)
    close(PACK, WHAT, "base and concept", relative(result, expected))


def test_windows_on_a_concept(tiny, base, concept, prompts, windows, one, close):
    positive, negative = prompts
    theirs = windows(among_frames(concept))
    d0, dc = one(base, positive, negative, 0.0), one(theirs, positive, negative, 0.0)
    expected = one(base, positive, negative, CFG) + 1.5 * (dc - d0)
    result = one(apply(base, [Link(model=theirs, scale=1.5)]), positive, negative, CFG)
    close(PACK, WHAT, "a concept", relative(result, expected))
