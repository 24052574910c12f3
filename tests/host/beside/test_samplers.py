"""Samplers, guiders and loaders of other packs with GCFG on their MODEL."""

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import counted, guided, relative, stock

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


LORA = "beside.safetensors"
LOADERS = {"Power Lora Loader": {"lora_1": {"on": True, "lora": LORA, "strength": 0.8}},
           "Lora Loader Stack": {"lora_01": LORA, "strength_01": 0.8, "clip": None},
           "Power Prompt": {"prompt": "a dog <lora:beside:0.8>"}}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_make_a_concept(tiny, base, prompts, node, one, close, tmp_path, monkeypatch, name):
    positive, negative = prompts
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    save_file({k: v.contiguous() for k, v in tiny.lora(base).items()}, tmp_path / LORA)
    model = {"opt_model": base, "opt_clip": Encoder()} if name == "Power Prompt" else {"model": base}
    made = node("rgthree-comfy", f"{name} (rgthree)", **model, **LOADERS[name])
    styled = next(m for m in made if isinstance(m, ModelPatcher))
    d0, dc = one(base, negative), one(styled, negative)
    assert relative(dc, d0) > 1e-3
    with counted(base) as calls:
        result = one(apply(base, [Link(model=styled, scale=1.5)]), positive, negative, CFG)
    assert calls == [(0, 3)]
    close("rgthree-comfy", name, "a concept on one copy of the weights",
          relative(result, one(base, positive, negative, CFG) + 1.5 * (dc - d0)))


class Encoder:
    """A CLIP that LoRAs do not touch and that encodes nothing."""

    cond_stage_model = torch.nn.Module()

    def clone(self):
        return self

    def tokenize(self, text):
        return text

    def add_patches(self, *args):
        return []

    def encode_from_tokens_scheduled(self, tokens):
        return []


def test_switches_hand_on_a_chain(tiny, base, prompts, node, one):
    """Any Switch takes a chain of guidances, and a Context the MODEL that carries one."""
    positive, negative = prompts
    chain = (Link(conditioning=tiny.conditioning(3), scale=0.5),)
    taken, = node("rgthree-comfy", "Any Switch (rgthree)", any_01=None, any_02=chain)
    assert taken is chain
    patched = apply(base, chain)
    context = node("rgthree-comfy", "Context (rgthree)", model=patched, positive=positive, negative=negative)
    handed = next(m for m in context if isinstance(m, ModelPatcher))
    assert torch.equal(one(handed, positive, negative, CFG), one(patched, positive, negative, CFG))


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
