"""Samplers, guiders and loaders of other packs with GCFG on their MODEL."""

import comfy.samplers
import folder_paths
import pytest
from safetensors.torch import save_file

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import guided, relative, stock

CFG = 2.5


@pytest.fixture
def one(tiny):
    """One step of the stock sampler; with cfg 1 the prediction for the positive."""
    def step(model, positive, negative=None, cfg=1.0):
        return stock(model, positive, negative or tiny.conditioning(2), tiny.latent(seed=9), cfg=cfg, steps=1)
    return step


def test_scheduled_cfg_guider(tiny, base, concept, prompts, node, one, close):
    """Outside its window the guider predicts the positive alone: the recipe's reference is then its own pass."""
    positive, negative = prompts

    def run(model, **window):
        sigmas = comfy.samplers.KSampler(base, 1, "cpu", "euler", "karras", 1.0).sigmas
        guider, = node("ComfyUI-KJNodes", "ScheduledCFGGuidance", model=model, positive=positive, negative=negative,
                         cfg=CFG, **window)
        assert len(sigmas) == 2
        return guided(guider, tiny.latent(seed=9), steps=1)
    added = 1.5 * (one(concept, negative) - one(base, negative))
    for where, window in (("inside its window", {}), ("outside", {"start_percent": 0.9, "end_percent": 1.0})):
        result = run(apply(base, [Link(model=concept, scale=1.5)]), **window)
        close("ComfyUI-KJNodes", "ScheduledCFGGuidance", where, relative(result, run(base, **window) + added))


def test_power_lora_loader_makes_a_concept(tiny, base, prompts, node, one, close, tmp_path):
    positive, negative = prompts
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    save_file({k: v.contiguous() for k, v in tiny.lora(base).items()}, tmp_path / "beside.safetensors")
    styled = node("rgthree-comfy", "Power Lora Loader (rgthree)", model=base,
                  lora_1={"on": True, "lora": "beside.safetensors", "strength": 0.8})[0]
    d0, dc = one(base, negative), one(styled, negative)
    assert relative(dc, d0) > 1e-3
    result = one(apply(base, [Link(model=styled, scale=1.5)]), positive, negative, CFG)
    close("rgthree-comfy", "Power Lora Loader", "a concept on one copy of the weights",
          relative(result, one(base, positive, negative, CFG) + 1.5 * (dc - d0)))


@pytest.mark.parametrize("further", [0, 1, 2])
def test_sampler_with_nag(tiny, base, concept, prompts, node, one, close, further):
    """It runs no wrapper around its predictions, and its attention knows the host's pair only. A further prompt of the
    chain is a positive, too."""
    positive, negative = prompts

    def run(model, text=positive, cfg=CFG):
        return node("ComfyUI-NAG", "KSamplerWithNAG", model=model, seed=5, steps=1, cfg=cfg, sampler_name="euler",
                    scheduler="karras", positive=text, negative=negative, nag_negative=tiny.conditioning(8),
                    latent_image=tiny.latent(seed=9), nag_sigma_end=0.0)[0]["samples"]
    alone, d0, links = run(base), one(base, negative), [Link(model=concept, scale=1.5)]
    assert relative(alone, one(base, positive, negative, CFG)) > 1e-3
    expected = alone + 1.5 * (one(concept, negative) - d0)
    for n in range(further):
        text = tiny.conditioning(20 + n)
        links.append(Link(conditioning=text, scale=0.5))
        expected = expected + 0.5 * (run(base, text, cfg=1.0) - d0)
    close("ComfyUI-NAG", "KSamplerWithNAG", f"the base, {further} further prompts in the chain",
          relative(run(apply(base, links)), expected))
