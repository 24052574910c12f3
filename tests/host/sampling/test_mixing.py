"""Patches that look at a whole batch: each prediction is as it would be by itself. ControlNets are told the roles."""

from types import MethodType

import comfy.controlnet
import comfy.sd
import pytest
from comfy.ldm.modules.attention import optimized_attention
from nodes import ControlNetApplyAdvanced

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.models.weights import draw
from harness.sampling import counted, relative
from harness.twins import with_null_text

CFG, WHERE = 2.5, "middle_block.1.transformer_blocks.0.attn2"


def normalised(q, k, v, extra_options, mask=None):
    """An attention as large as the whole batch is on average."""
    found = optimized_attention(q, k, v, extra_options["n_heads"])
    return found / found.std() * q.std()


def by_replacement(model):
    """The MODEL with this attention in one block, as most packs put it there."""
    model = model.clone()
    model.set_model_attn2_replace(normalised, "middle", 0)
    return model


def by_method(model):
    """The same in place of a method of the layer."""
    layer = model.get_model_object(f"diffusion_model.{WHERE}")

    def forward(self, x, context=None, value=None, **kwargs):
        return self.to_out(normalised(self.to_q(x), self.to_k(context), self.to_v(context), {"n_heads": self.heads}))
    model = model.clone()
    model.add_object_patch(f"diffusion_model.{WHERE}.forward", MethodType(forward, layer))
    return model


@pytest.mark.parametrize("patch", [by_replacement, by_method])
def test_each_prediction_is_as_it_would_be_alone(tiny, base, concept, prompts, one, patch):
    """In one batch it was off by 0.2."""
    positive, negative = prompts
    style, theirs = tiny.conditioning(3), patch(base)
    styled, _ = comfy.sd.load_lora_for_models(theirs, None, tiny.lora(base), 1.0, 0.0)
    alone = one(theirs, positive, negative, CFG)
    assert relative(alone, one(base, positive, negative, CFG)) > 1e-3
    d0, ds, dc, dl = (one(theirs, positive, negative, 0.0), one(theirs, style), one(concept, negative),
                      one(styled, style))
    links = [Link(model=concept, scale=1.5), Link(conditioning=style, scale=0.5),
             Link(model=styled, conditioning=style, scale=0.7)]
    with counted(base) as calls:
        result = one(apply(theirs, links), positive, negative, CFG)
    assert relative(result, alone + 1.5 * (dc - d0) + 0.5 * (ds - d0) + 0.7 * (dl - d0)) < 1e-4
    assert sorted(rows for _, rows in calls)[-3:] == [1, 1, 2]


def test_other_replacements_stay_in_one_batch(tiny, base, prompts, one):
    positive, negative = prompts
    model = base.clone()
    model.set_model_attn2_replace(lambda q, k, v, options: optimized_attention(q, k, v, options["n_heads"]) * 2,
                                  "middle", 0)
    with counted(base) as calls:
        one(apply(model, [Link(conditioning=tiny.conditioning(3), scale=0.5)]), positive, negative, CFG)
    assert calls == [(0, 3)]


def test_a_method_for_a_lora_of_the_base_alone_is_refused(tiny, base, prompts, one):
    """It belongs to the layer of the base, and would run the base's weights."""
    styled, _ = comfy.sd.load_lora_for_models(base, None, tiny.lora(base), 1.0, 0.0)
    with pytest.raises(ValueError, match="functions in place of its layers' own"):
        one(apply(base, [Link(model=by_method(styled), scale=0.7)]), *prompts, CFG)


def test_a_method_stays_behind_a_null_text_concept_over_one_copy(tiny, base, prompts, one):
    """The concept skips that layer; afterwards the pack's method was gone until the host put it there again."""
    theirs = by_method(base)
    one(apply(theirs, [Link(model=with_null_text(theirs), scale=0.7)]), *prompts, CFG)
    forward = vars(base.model.diffusion_model.get_submodule(WHERE)).get("forward")
    assert forward is theirs.object_patches[f"diffusion_model.{WHERE}.forward"]


def test_controlnets_are_told_roles(tiny, base, prompts, one, monkeypatch):
    """They were told places, under which the weights of some packs for the negative act on another prediction."""
    net, hint, told = tiny.controlnet(), draw("hint", (1, 64, 64, 3), 1), []
    real = comfy.controlnet.ControlNet.get_control

    def noted(self, x, t, cond, batched_number, transformer_options):
        told.append(list(transformer_options["cond_or_uncond"]))
        return real(self, x, t, cond, batched_number, transformer_options)
    monkeypatch.setattr(comfy.controlnet.ControlNet, "get_control", noted)
    positive, negative = ControlNetApplyAdvanced().apply_controlnet(*prompts, net, hint, 1.0, 0.0, 1.0)
    style = [[tiny.conditioning(3)[0][0], dict(positive[0][1])]]
    one(apply(base, [Link(conditioning=style, scale=0.5)]), positive, negative, CFG)
    assert told == [[1, 0, 0]]
