"""A pack that takes over the host's sampling function for a run and predicts frames in windows, as AnimateDiff does."""

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import relative, stock, through_guider

CFG, FRAMES, WINDOW = 2.5, 4, 2


def among_frames(model):
    """A MODEL whose frames (the batch) see their mean: without it a window would not matter."""
    def mix(out, extra_options):
        frames = out.unflatten(0, (len(extra_options["cond_or_uncond"]), -1))
        return (frames + frames.mean(dim=1, keepdim=True)).flatten(0, 1)
    model = model.clone()
    model.set_model_attn1_output_patch(mix)
    return model


def _whole_run(executor, *args, **kwargs):
    """Replaces the sampling function, and says so in the options that only that function passes on."""
    original = comfy.samplers.sampling_function

    def evolved(*args, model_options, **kwargs):
        told = {**model_options["transformer_options"], "of_pack": WINDOW}
        return original(*args, model_options={**model_options, "transformer_options": told}, **kwargs)
    comfy.samplers.sampling_function = evolved
    try:
        return executor(*args, **kwargs)
    finally:
        comfy.samplers.sampling_function = original


def _in_windows(executor, model, conds, x, timestep, options):
    size = options["transformer_options"]["of_pack"]
    parts = [executor(model, conds, *part, options) for part in zip(x.split(size), timestep.split(size), strict=True)]
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def windows(model):
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "pack", _whole_run)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "pack", _in_windows)
    return model


@pytest.fixture
def one(tiny):
    """One step over all frames; with cfg 1 the prediction for the positive, with 0 that for the negative."""
    def step(model, positive, negative=None, cfg=1.0, sample=stock, **options):
        options = options if sample is through_guider else {"cfg": cfg}
        latent = tiny.latent(batch=FRAMES, seed=9)
        return sample(model, positive, negative or tiny.conditioning(2), latent, steps=1, **options)
    return step


@pytest.mark.parametrize("way", ["before", "after", "guider"])
def test_windows_on_the_base(tiny, base, concept, prompts, one, way):
    """All three ways of sampling crashed: rows ran without the pack's options, in windows of another size."""
    positive, negative = prompts
    base, style = among_frames(base), tiny.conditioning(3)
    links, theirs = [Link(model=concept, scale=1.5), Link(conditioning=style, scale=0.5)], windows(base)
    alone = one(theirs, positive, negative, CFG)
    assert relative(alone, one(base, positive, negative, CFG)) > 1e-3
    d0, ds, dc = one(theirs, positive, negative, 0.0), one(theirs, style), one(concept, negative)
    if way == "guider":
        result = one(theirs, positive, negative, sample=through_guider, links=links, scale=CFG)
    else:
        model = apply(theirs, links) if way == "before" else windows(apply(base, links))
        result = one(model, positive, negative, CFG)
    assert relative(result, alone + 1.5 * (dc - d0) + 0.5 * (ds - d0)) < 1e-4


def test_windows_on_a_concept_are_refused(base, concept, prompts, one):
    """They have nothing of the run that they need; the sampler is as before afterwards."""
    before, replaced = one(base, *prompts, CFG), comfy.samplers.sampling_function
    with pytest.raises(ValueError, match="Concept: its model carries a pack that takes over a whole sampler"):
        one(apply(base, [Link(model=windows(concept), name="Concept")]), *prompts, CFG)
    assert comfy.samplers.sampling_function is replaced
    assert torch.equal(one(base, *prompts, CFG), before)
