"""The AutoGuidance pack's guider over two MODELs, with GCFG on the good one, on the bad one and on both."""

import pytest

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import guided, relative, stock

PACK, WHAT = "ComfyUI-AutoGuidance", "AutoGuidanceCFGGuider"


@pytest.fixture
def run(node, tiny, prompts):
    """One step of the pack's guider on two models with weights of their own."""
    positive, negative = prompts

    def step(good, bad, **options):
        guider, = node(PACK, WHAT, good_model=good, bad_model=bad, positive=positive, negative=negative, cfg=2.5,
                       w_autoguide=2.0, swap_mode="dual_models_2x_vram", debug_swap=False, debug_metrics=False,
                       ag_ramp_floor=0.0, **options)
        return guided(guider, tiny.latent(seed=9), steps=1)
    return step


@pytest.mark.parametrize("mode", ["sequential_delta", "multi_guidance_paper"])
def test_on_the_good_model(tiny, base, prompts, run, close, mode):
    bad, third, negative = tiny.sd15(seed=2), tiny.sd15(seed=3), prompts[1]
    alone = run(base, bad, ag_combine_mode=mode)
    d0, dc = (stock(m, negative, negative, tiny.latent(seed=9), cfg=1.0, steps=1) for m in (base, third))
    result = run(apply(base, [Link(model=third, scale=1.5)]), bad, ag_combine_mode=mode)
    close(PACK, f"{WHAT}, {mode}", "the good model", relative(result, alone + 1.5 * (dc - d0)))
    assert relative(result, alone) > 1e-3


@pytest.mark.parametrize("both", [False, True], ids=["bad", "both"])
def test_a_patched_bad_model_is_refused(tiny, base, run, refused, both):
    links = [Link(model=tiny.sd15(seed=3), scale=1.5)]
    good = apply(base, links) if both else base
    with pytest.raises(ValueError, match="A model beside the sampler's own carries GCFG guidances"):
        run(good, apply(tiny.sd15(seed=2), links))
    refused(PACK, WHAT, "both models" if both else "the bad model")
