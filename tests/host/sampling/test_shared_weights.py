"""Clones of one checkpoint share one module: every model of a recipe must still run with its own patches."""

import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import counted, gcfg, relative, stock, through_guider


def with_lora(tiny, model, seed=3, strength=1.0):
    """The MODEL that the stock LoRA loader gives: a clone that shares its module."""
    return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, seed), strength, 0.0)[0]


def merged(tiny, seed, lora_seed=3):
    """Base and LoRA in a module of its own, as loading the checkpoint twice would give."""
    return with_lora(tiny, tiny.sd15(seed), lora_seed)


@pytest.mark.parametrize("load_first", [False, True])
def test_base_and_base_with_lora(tiny, base, prompts, load_first):
    positive, negative = prompts
    tuned = with_lora(tiny, base)
    if load_first:  # the module then carries the LoRA when sampling starts
        stock(tuned, positive, negative, tiny.latent())
    result = gcfg(base, positive, negative, tiny.latent(), concept=tuned)
    expected = gcfg(base, positive, negative, tiny.latent(), concept=merged(tiny, 1))
    assert relative(result, expected) < 1e-4
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), concept=tiny.sd15(1))) > 0.01
    assert base.model is tuned.model


def test_lora_on_the_base_only(tiny, base, prompts):
    positive, negative = prompts
    tuned = with_lora(tiny, base)
    result = gcfg(tuned, positive, negative, tiny.latent(), concept=base)
    expected = gcfg(merged(tiny, 1), positive, negative, tiny.latent(), concept=tiny.sd15(1))
    assert relative(result, expected) < 1e-4


def test_lora_loaded_behind_the_patch(tiny, base, prompts):
    positive, negative = prompts
    patched = with_lora(tiny, apply(base, [Link(model=base.clone(), scale=-0.5)]))
    expected = stock(apply(merged(tiny, 1), [Link(model=tiny.sd15(1), scale=-0.5)]), positive, negative, tiny.latent())
    assert relative(stock(patched, positive, negative, tiny.latent()), expected) < 1e-4


def test_two_loras_of_two_models(tiny, base, concept, prompts):
    positive, negative = prompts
    links = [Link(model=concept), Link(model=with_lora(tiny, concept, 4)), Link(model=with_lora(tiny, base, 5))]
    own = [Link(model=tiny.sd15(2)), Link(model=merged(tiny, 2, 4)), Link(model=merged(tiny, 1, 5))]
    result = gcfg(base, positive, negative, tiny.latent(), links=links)
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), links=own)) < 1e-4


def test_a_clone_without_changes_is_the_base(tiny, base, prompts):
    positive, negative = prompts
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=base.clone(), conditioning=positive)])
    assert calls == [(0, 2)] * 4
    assert relative(result, stock(base, positive, negative, tiny.latent(), cfg=3.5)) < 1e-4


def test_a_clone_with_other_attention_patches(tiny, base, prompts):
    positive, negative = prompts
    perturbed = base.clone()
    perturbed.set_model_attn1_replace(lambda q, k, v, extra_options: v, "middle", 0)
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=perturbed, conditioning=positive)])
    assert calls == [(0, 1), (0, 2)] * 4
    apart = tiny.sd15(1)
    apart.set_model_attn1_replace(lambda q, k, v, extra_options: v, "middle", 0)
    expected = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=apart, conditioning=positive)])
    assert relative(result, expected) < 1e-4
    assert relative(result, stock(base, positive, negative, tiny.latent(), cfg=5.0)) > 0.01


def hooked(tiny, model, conditioning, seed=3):
    """A conditioning with a LoRA hook, as Create Hook LoRA and Set CLIP/Conditioning Hooks give it."""
    group = comfy.hooks.create_hook_lora(tiny.lora(model, seed), 1.0, 0.0)
    return [[cross_attn, {**options, "hooks": group}] for cross_attn, options in conditioning]


def test_hook_lora_on_a_guidance(tiny, base, prompts):
    positive, negative = prompts
    style = tiny.conditioning(3)
    hook = hooked(tiny, base, style)
    result = gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=hook)])
    expected = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=merged(tiny, 1), conditioning=style)])
    assert relative(result, expected) < 1e-4
    without = gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=style)])
    assert relative(result, without) > 0.01


def test_hook_loras_on_the_sampler_and_on_two_guidances(tiny, base, concept, prompts):
    positive, negative = prompts
    style = tiny.conditioning(3)
    links = [Link(conditioning=hooked(tiny, base, style, 4), scale=1.0),
             Link(model=concept, conditioning=hooked(tiny, concept, style, 5), scale=1.0)]
    own = [Link(model=merged(tiny, 1, 4), conditioning=style, scale=1.0),
           Link(model=merged(tiny, 2, 5), conditioning=style, scale=1.0)]
    result = through_guider(base, hooked(tiny, base, positive), negative, tiny.latent(), links)
    expected = through_guider(base, negative, negative, tiny.latent(), own + [
        Link(model=merged(tiny, 1), conditioning=positive, scale=2.5)])
    assert relative(result, expected) < 1e-4
    patched = stock(apply(base, links), hooked(tiny, base, positive), negative, tiny.latent())
    assert torch.equal(patched, result)
    assert not base.hook_patches and not concept.hook_patches


class Dynamic(ModelPatcher):
    """Stands in for the dynamic MODEL of newer hosts, which exists with a GPU only."""

    def is_dynamic(self):
        return True

    def get_non_dynamic_delegate(self):
        return self.plain


def test_hooks_on_guidances_of_dynamic_models(tiny, base, concept, prompts):
    """As the host does for its own conditionings: a MODEL that hooks can work on takes the dynamic one's place."""
    positive, _ = prompts
    dynamic = []
    for plain in (base, concept):
        dynamic.append(Dynamic(plain.model, plain.load_device, plain.offload_device))
        dynamic[-1].plain = plain
    links = [Link(conditioning=hooked(tiny, base, positive)), Link(model=dynamic[1])]
    patched = apply(dynamic[0], links)
    assert not isinstance(patched, Dynamic) and patched.model is base.model
    assert list(patched.get_attachment("gcfg").models.values()) == [concept]
    without = apply(dynamic[0], [Link(model=dynamic[1])])
    assert isinstance(without, Dynamic) and list(without.get_attachment("gcfg").models.values()) == [dynamic[1]]
