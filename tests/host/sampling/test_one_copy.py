"""One copy of the weights: adapters on rows of a batch give what the same adapters give merged into a second model."""

import comfy.lora
import comfy.model_management as management
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import PatcherInjection

from gcfg_pack.gcfg.host.concepts import concept as concepts
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.weights.rows import row_adapter
from gcfg_pack.gcfg.nulltext.formats.adapter import Adapter, extract
from harness.node import call
from harness.sampling import counted, gcfg, relative, without_free_memory


def null_text_adapter(tiny, model, seed=11, rank=4):
    """A concept adapter with low-rank pairs on all linear and convolution layers, norm deltas and features."""
    whole = model.model.diffusion_model.state_dict()
    weights = {k: v for k, v in whole.items() if ".attn2." not in k and ".norm2." not in k}
    gen = torch.manual_seed(seed)
    changed = {k: v + 0.05 * v.std().clamp(min=0.1) * torch.randn(v.shape, generator=gen) for k, v in weights.items()}
    for key in [k for k in whole if k.endswith("attn2.to_out.0.bias")]:
        feature = torch.randn((1, 1, whole[key].shape[0]), generator=gen)
        changed[f"{key.removesuffix('.attn2.to_out.0.bias')}.attn2.null_text_feature"] = feature
    adapter, _ = extract(whole, changed, rank=rank)
    assert adapter.pairs and adapter.deltas and adapter.features
    return adapter


def with_adapter(tiny, model, seed=11, strength=1.0):
    return concepts.apply_adapter(model, null_text_adapter(tiny, model, seed), strength)


def lora(tiny, model, seed, strength=1.0, only=""):
    return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, seed, only=only), strength, 0.0)[0]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_equals_two_copies(tiny, family, strength):
    width, pooled = {"sd15": (768, 0), "sdxl": (2048, 1280)}[family]
    base = getattr(tiny, family)(1)
    positive, negative = (tiny.conditioning(s, width=width, pooled=pooled) for s in (1, 2))
    concept = with_adapter(tiny, base, strength=strength)
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(batch=2), concept)
    assert calls == [(0, 6)] * 4  # base[null], base[prompt] and the concept: one forward pass
    apart = with_adapter(tiny, getattr(tiny, family)(1), strength=strength)
    assert relative(result, gcfg(base, positive, negative, tiny.latent(batch=2), apart)) < 1e-3
    assert relative(result, gcfg(base, positive, negative, tiny.latent(batch=2))) > 0.1


def test_several_adapters_at_once(tiny, base, prompts):
    positive, negative = prompts
    style = tiny.conditioning(3)

    def links(models):
        null_text, other, style_lora, fox = models
        return [Link(model=null_text), Link(model=other, conditioning=positive, scale=0.5),
                Link(model=style_lora, conditioning=style, scale=0.7), Link(model=fox, conditioning=style, scale=-0.4),
                Link(model=style_lora, conditioning=positive, scale=0.3)]
    shared = [with_adapter(tiny, base, 11), with_adapter(tiny, base, 12), lora(tiny, base, 3), lora(tiny, base, 4, 0.5)]
    one = [with_adapter(tiny, tiny.sd15(1), 11), with_adapter(tiny, tiny.sd15(1), 12), lora(tiny, tiny.sd15(1), 3),
           lora(tiny, tiny.sd15(1), 4, 0.5)]
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(batch=2), links=links(shared))
    assert calls == [(0, 14)] * 4
    assert relative(result, gcfg(base, positive, negative, tiny.latent(batch=2), links=links(one))) < 1e-3


def test_lora_on_a_concept_adapter_and_stacked_loras(tiny, base, prompts):
    positive, negative = prompts

    def stacked(model):
        return lora(tiny, with_adapter(tiny, model), 3, only="attn1"), lora(tiny, lora(tiny, model, 3), 4)
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=m) for m in stacked(base)])
    assert calls == [(0, 4)] * 4
    expected = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=m) for m in stacked(tiny.sd15(1))])
    assert relative(result, expected) < 1e-3


def test_small_batches_when_memory_is_short(tiny, base, prompts, monkeypatch):
    positive, negative = prompts
    concept = with_adapter(tiny, base)
    expected = gcfg(base, positive, negative, tiny.latent(batch=2), concept)
    without_free_memory(monkeypatch, base)
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(batch=2), concept)
    assert calls == [(0, 2)] * 12
    assert relative(result, expected) < 1e-3


def test_no_second_copy_and_nothing_left(tiny, base, prompts, monkeypatch):
    positive, negative = prompts
    concept = with_adapter(tiny, base)
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    loads, original = [], management.load_models_gpu
    monkeypatch.setattr(management, "load_models_gpu",
                        lambda models, *args, **kwargs: (loads.append(models), original(models, *args, **kwargs))[1])
    monkeypatch.setattr(comfy.lora, "calculate_weight", lambda *args, **kwargs: pytest.fail("a weight was patched"))
    gcfg(base, positive, negative, tiny.latent(), lora(tiny, base, 3))
    assert [len(models) for models in loads] == [1]
    monkeypatch.undo()
    gcfg(base, positive, negative, tiny.latent(), concept)
    after = base.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    layers = base.model.diffusion_model.modules()
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in layers)


def test_concept_rows_ignore_their_text_and_others_do_not(tiny, base, prompts):
    positive, negative = prompts
    concept = with_adapter(tiny, base)
    one = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=concept, conditioning=tiny.conditioning(7))])
    two = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=concept, conditioning=tiny.conditioning(8))])
    assert torch.equal(one, two)
    other = gcfg(base, tiny.conditioning(7), negative, tiny.latent(), concept)
    assert relative(other, gcfg(base, positive, negative, tiny.latent(), concept)) > 0.01


def test_nothing_is_kept_for_a_cross_attention_that_is_a_constant(tiny, base):
    made = row_adapter(with_adapter(tiny, base), base)
    assert len(made.constants) == 4 and made.layers and not any(".attn2." in name for name in made.layers)


@pytest.mark.parametrize("part", [None, (0, 0, 16)])
def test_a_cross_attention_that_is_set_to_something_else_runs(tiny, base, prompts, part):
    """Its output weight to other numbers, or a part of it to zero."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.weight"
    value = 0.3 * torch.randn((32, 32), generator=torch.manual_seed(1)) if part is None else torch.zeros(16, 32)

    def changed(model):
        clone = model.clone()
        clone.add_patches({key if part is None else (key, part): ("set", (value,))})
        return clone
    result = gcfg(base, *prompts, tiny.latent(), changed(base))
    assert relative(result, gcfg(base, *prompts, tiny.latent(), changed(tiny.sd15(1)))) < 1e-4
    assert relative(result, gcfg(base, *prompts, tiny.latent())) > 1e-3


def attn2_replace(q, k, v, extra_options):
    """An attention patch that computes by itself, as IPAdapter's does: the projections are then called one by one."""
    from comfy.ldm.modules.attention import optimized_attention
    return optimized_attention(q, k, v, extra_options["n_heads"])


def test_beside_an_attention_patch_that_calls_the_projections(tiny, base, prompts):
    positive, negative = prompts
    patched, apart = base.clone(), tiny.sd15(1)
    for model in (patched, apart):
        model.set_model_attn2_replace(attn2_replace, "middle", 0)
    result = gcfg(patched, positive, negative, tiny.latent(), with_adapter(tiny, patched))
    expected = gcfg(patched, positive, negative, tiny.latent(), with_adapter(tiny, apart))
    assert relative(result, expected) < 1e-3


def test_beside_hypertile(tiny, base, prompts):
    from comfy_extras import nodes_hypertile
    positive, negative = prompts

    def tiled(model):
        return call(nodes_hypertile.HyperTile, model, 32, 2, 0, False)[0]
    latent = tiny.latent(height=16, width=16)
    patched = tiled(base)
    torch.manual_seed(0)
    result = gcfg(patched, positive, negative, latent, lora(tiny, patched, 3), concept_scale=1.0)
    assert torch.isfinite(result).all()


def test_in_half_precision(tiny, prompts):
    positive, negative = prompts
    base = tiny.sd15(1, dtype=torch.bfloat16)
    result = gcfg(base, positive, negative, tiny.latent(), with_adapter(tiny, base), concept_scale=1.5)
    apart = with_adapter(tiny, tiny.sd15(1, dtype=torch.bfloat16))
    expected = gcfg(base, positive, negative, tiny.latent(), apart, concept_scale=1.5)
    assert relative(result, expected) < 0.3  # both are rounded, differently
    whole = tiny.sd15(1)
    exact = gcfg(whole, positive, negative, tiny.latent(), with_adapter(tiny, whole), concept_scale=1.5)
    assert (result - exact).std() < 1.5 * (expected - exact).std()


@pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="this ComfyUI has no bypass loader")
@pytest.mark.parametrize(("on_base", "on_concept"), [(None, 3), (4, None), (4, 3)])
def test_bypass_loras_run_on_rows(tiny, base, prompts, on_base, on_concept):
    positive, negative = prompts

    def given(model, seed, load):
        return model if seed is None else load(model, None, tiny.lora(model, seed), 0.8, 0.0)[0]
    pair = [given(base, seed, comfy.sd.load_bypass_lora_for_models) for seed in (on_base, on_concept)]
    apart = [given(tiny.sd15(1), seed, comfy.sd.load_lora_for_models) for seed in (on_base, on_concept)]
    plain = gcfg(base, positive, negative, tiny.latent())
    with counted(base) as calls:
        result = gcfg(pair[0], positive, negative, tiny.latent(), pair[1])
    assert calls == [(0, 3)] * 4
    assert relative(result, gcfg(apart[0], positive, negative, tiny.latent(), apart[1])) < 1e-4
    assert relative(result, plain) > 0.01
    assert torch.equal(gcfg(base, positive, negative, tiny.latent()), plain)


def test_other_injections_are_refused(tiny, base, prompts):
    """They reach into the module that both clones share."""
    positive, negative = prompts
    clone = base.clone()
    clone.set_injections("bypass", [PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)])
    with pytest.raises(ValueError, match="bypass LoRA.* ordinary loader"):
        gcfg(base, positive, negative, tiny.latent(), clone)


def test_an_injection_that_both_have_stays(tiny, base, prompts):
    """A motion module, and behind it a LoRA: both run in it, in one batch."""
    positive, negative = prompts
    base.set_injections("motion", [PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)])
    for load in (comfy.sd.load_lora_for_models, getattr(comfy.sd, "load_bypass_lora_for_models", None)):
        if load is not None:
            with counted(base) as calls:
                gcfg(base, positive, negative, tiny.latent(), load(base, None, tiny.lora(base, 4), 0.8, 0.0)[0])
            assert calls == [(0, 3)] * 4


def test_stock_lora_form_of_a_concept(tiny, base, prompts):
    """Loaded by the stock LoRA loader, a concept saved as a LoRA runs on rows, too."""
    from gcfg_pack.gcfg.nulltext.formats import stock_lora
    positive, negative = prompts
    adapter = null_text_adapter(tiny, base)
    assert isinstance(adapter, Adapter)
    file = stock_lora.to_stock_lora(adapter, concepts.originals(base))
    stock = comfy.sd.load_lora_for_models(base, None, file, 1.0, 0.0)[0]
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), stock)
    assert calls == [(0, 3)] * 4
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), with_adapter(tiny, base))) < 1e-3
