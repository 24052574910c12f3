"""KJNodes' functions in place of Wan's attention, some of which take a batch for one pair of positive and negative."""

import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.models.families import FAMILIES
from harness.models.weights import draw
from harness.sampling import relative, stock

PACK, CFG, WAN = "ComfyUI-KJNodes", 2.5, FAMILIES["Wan 2.1 text to video"]
PATCHES = {"WanVideoNAG": {"nag_scale": 6.0}, "WanVideoEnhanceAVideoKJ": {"weight": 8.0}}


@pytest.fixture
def patch(node):
    def to(name, model):
        extra = {"conditioning": WAN.conditioning(8)} if name == "WanVideoNAG" else {"latent": WAN.latents()}
        return node(PACK, name, model=model, **PATCHES[name], **extra)[0]
    return to


def one(model, positive, negative=None, cfg=1.0):
    """One step of the stock sampler; with cfg 1 the prediction for the positive, with 0 that for the negative."""
    return stock(model, positive, negative or WAN.conditioning(2), WAN.latents(), cfg=cfg, steps=1, scheduler="simple")


@pytest.mark.parametrize("name", PATCHES)
def test_on_the_base(patch, close, name):
    """The sampler's pair runs as without a chain, and each of the chain's predictions by itself."""
    positive, negative, style = (WAN.conditioning(n) for n in (1, 2, 3))
    base, concept = WAN.model(1), WAN.model(2)
    theirs = patch(name, base)
    styled, _ = comfy.sd.load_lora_for_models(theirs, None, lora(base), 1.0, 0.0)
    alone = one(theirs, positive, negative, CFG)
    assert relative(alone, one(base, positive, negative, CFG)) > 1e-3, "the node does nothing here"
    d0, ds, dc, dl = (one(theirs, positive, negative, 0.0), one(theirs, style), one(concept, negative),
                      one(styled, style))
    assert relative(dl, ds) > 1e-3, "the LoRA does nothing here"
    links = [Link(model=concept, scale=1.5), Link(conditioning=style, scale=0.5),
             Link(model=styled, conditioning=style, scale=0.7)]
    result = one(apply(theirs, links), positive, negative, CFG)
    close(PACK, name, "the base, before Apply GCFG",
          relative(result, alone + 1.5 * (dc - d0) + 0.5 * (ds - d0) + 0.7 * (dl - d0)))
    result = one(patch(name, apply(base, links[:2])), positive, negative, CFG)
    close(PACK, name, "the base, after Apply GCFG", relative(result, alone + 1.5 * (dc - d0) + 0.5 * (ds - d0)))


@pytest.mark.parametrize("name", PATCHES)
def test_on_a_concept(patch, close, name):
    positive, negative, style = (WAN.conditioning(n) for n in (1, 2, 3))
    base, concept = WAN.model(1), WAN.model(2)
    theirs = patch(name, concept)
    d0, ds = one(base, negative), one(theirs, style)
    assert relative(ds, one(concept, style)) > 1e-3, "the node does nothing here"
    result = one(apply(base, [Link(model=theirs, conditioning=style, scale=1.5)]), positive, negative, CFG)
    close(PACK, name, "a concept with a prompt",
          relative(result, one(base, positive, negative, CFG) + 1.5 * (ds - d0)))


def test_on_a_lora_of_the_base_alone_is_refused(patch, refused):
    """Its functions belong to the layers of the base, and would run those."""
    base = WAN.model(1)
    styled, _ = comfy.sd.load_lora_for_models(base, None, lora(base), 1.0, 0.0)
    model = apply(base, [Link(model=patch("WanVideoNAG", styled), conditioning=WAN.conditioning(3), scale=1.5)])
    with pytest.raises(ValueError, match="functions in place of its layers' own"):
        one(model, WAN.conditioning(1), WAN.conditioning(2), CFG)
    refused(PACK, "WanVideoNAG", "a LoRA of the base alone")


def lora(model):
    """A LoRA file on the attention of a Wan model."""
    weights = {}
    for name, weight in model.model.diffusion_model.state_dict().items():
        if weight.ndim == 2 and "_attn." in name:
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            weights[f"{key}.lora_up.weight"] = draw(key + "up", (weight.shape[0], 2), 4) * 4.0
            weights[f"{key}.lora_down.weight"] = draw(key + "down", (2, weight.shape[1]), 4)
            weights[f"{key}.alpha"] = torch.tensor(2.0)
    return weights
