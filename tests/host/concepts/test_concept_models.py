"""Concept models in the real host: built, converted, loaded under its memory management, and the base left alone."""

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import pytest
import torch

from gcfg_pack.gcfg.host.concepts import concept, convert
from gcfg_pack.gcfg.host.concepts import files as concept_files
from gcfg_pack.gcfg.nulltext import attention
from gcfg_pack.gcfg.nulltext.formats import checkpoint, keymap
from gcfg_pack.gcfg.nulltext.formats.identify import Kind
from harness.models.concepts import same, sample

CPU = torch.device("cpu")


def snapshot(model):
    return {key: value.clone() for key, value in model.model.state_dict().items()}


FAMILIES = {"sd15": {}, "sdxl": {"width": 2048, "pooled": 1280}}


@pytest.fixture(params=FAMILIES)
def family(request, tiny):
    """A base model, and a function for conditionings that it reads."""
    text = FAMILIES[request.param]
    return getattr(tiny, request.param)(seed=1), lambda seed, **extra: tiny.conditioning(seed, **text, **extra)


def converted(base, text=None, **options):
    return convert.convert(base, text, latents=2, size=8, **options)


# conversion ----------------------------------------------------------------------------------------------------------


def test_converted_model_has_no_cross_attention_and_ignores_text(family):
    base, text = family
    before, output = snapshot(base), sample(base, text(1), text(2))
    model, table = converted(base, text(0))
    unet = model.model.diffusion_model
    shapes = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    assert shapes == keymap.null_text_shapes(concept.shapes(base))
    assert not any(".attn2." in name or ".norm2." in name for name, _ in unet.named_parameters())
    x, sigma, adm = torch.randn(2, 4, 8, 8), torch.full((2,), 3.0), base.model.model_config.unet_config
    extra = {"y": torch.randn(2, 2816)} if adm.get("adm_in_channels") else {}
    with torch.no_grad():
        outputs = [model.model.apply_model(x, sigma, c_crossattn=c, **extra)
                   for c in (None, torch.randn(2, 5, 7), torch.randn(2, 77, adm["context_dim"]))]
    assert all(float((out - outputs[0]).abs().max()) == 0.0 for out in outputs)
    if not extra:
        assert torch.equal(sample(model, text(1), text(2)), sample(model, text(3), text(4)))
    assert len(table.splitlines()) == len(keymap.feature_blocks(shapes)) + 2
    assert same(before, snapshot(base)) and torch.equal(sample(base, text(1), text(2)), output)


def test_exact_where_the_context_tokens_are_equal(family):
    base, text = family
    null = text(5, tokens=1)
    model, table = converted(base, null)
    repeated = [[null[0][0].expand(-1, 9, -1), null[0][1]]]
    assert float(table.split()[0]) < 1e-4
    expected = sample(base, repeated)
    assert (sample(model, repeated) - expected).abs().max() < 1e-3 * expected.std()


def test_features_are_the_mean_of_what_attn2_gives(tiny, base):
    null = tiny.conditioning(5)
    features, residual = convert.null_text_features(base, null, latents=2, size=8)
    outputs = {name: [] for name in features}
    handles = [block.attn2.register_forward_hook(lambda m, a, out, name=name: outputs[name].append(out.detach()))
               for name, block in attention.cross_attention_blocks(base.model.diffusion_model).items()]
    again, _ = convert.null_text_features(base, null, latents=2, size=8)
    for handle in handles:
        handle.remove()
    for name, feature in features.items():
        flat = torch.cat([out.reshape(-1, out.shape[-1]) for out in outputs[name]]).double()
        assert len(outputs[name]) == 4 and torch.equal(feature, again[name])
        assert torch.allclose(feature.flatten().double(), flat.mean(0), atol=1e-6)
        expected = ((flat - flat.mean(0)).square().sum() / flat.square().sum()).sqrt()
        assert residual[name] == pytest.approx(float(expected), rel=1e-4)
    assert not base.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2._forward_hooks


def test_conversion_shows_its_progress(base, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    convert.convert(base, None, latents=8, size=8)
    assert seen[0] == (1, 8) and seen[-1] == (8, 8)


def test_seed_and_conditioning_matter_and_are_told(tiny, base):
    model, table = converted(base, tiny.conditioning(5), seed=7)
    told = model.attachments[concept.CONCEPT].provenance
    assert "the connected conditioning, seed 7" in table and "seed 7" in told.made_by
    assert told.architecture == "SD15" and told.residual.keys() == attention.features_of(
        model.model.diffusion_model).keys()
    zero, table = converted(base)
    assert "all-zero text" in table
    features = [attention.features_of(m.model.diffusion_model) for m in (model, zero)]
    assert not any(torch.equal(features[0][name], features[1][name]) for name in features[0])


def test_conversion_keeps_loras(tiny, base):
    tuned = comfy.sd.load_lora_for_models(base, None, tiny.lora(base), 1.0, 0.0)[0]
    null = [[tiny.conditioning(5, tokens=1)[0][0].expand(-1, 9, -1), {}]]
    model, _ = converted(tuned, null)
    expected = sample(tuned, null)
    assert (sample(model, null) - expected).abs().max() < 1e-3 * expected.std()
    assert (sample(base, null) - expected).std() > 0.02 * expected.std()
    assert any(".attn1." in key for key in model.patches) and not any(".attn2." in key for key in model.patches)


def test_conversion_keeps_type_and_sampling(tiny):
    base = tiny.sd15(seed=1, prediction="v", dtype=torch.bfloat16)
    marked = base.clone()
    marked.add_object_patch("model_sampling", tiny.sd15(prediction="v").model.model_sampling)
    model, _ = converted(marked)
    kinds = {key.rsplit(".", 1)[-1]: value.dtype for key, value in model.model.diffusion_model.state_dict().items()}
    assert kinds["weight"] is torch.bfloat16 and kinds["null_text_feature"] is torch.float32
    assert model.model.model_type is base.model.model_type
    assert model.get_model_object("model_sampling") is marked.object_patches["model_sampling"]


def test_what_cannot_be_converted_is_refused(tiny, base):
    model, _ = converted(base)
    with pytest.raises(ValueError, match="itself a null-text concept model"):
        converted(model)
    with pytest.raises(ValueError, match="SD3 reads text together with the picture"):
        converted(tiny.sd3(), tiny.conditioning(1, width=4096, pooled=2048))
    bypassed = base.clone()
    bypassed.set_injections("bypass_lora", [])
    with pytest.raises(ValueError, match="not merged.*ordinary LoRA loader"):
        converted(bypassed)


def test_an_interrupt_stops_the_calibration_and_leaves_no_hooks(base):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        converted(base)
    assert not any(block.attn2._forward_hooks
                   for block in attention.cross_attention_blocks(base.model.diffusion_model).values())


# under the host's memory management ----------------------------------------------------------------------------------


def test_clone_and_lora(tiny, base):
    model, _ = converted(base)
    text, plain = tiny.conditioning(1), None
    plain = sample(model, text)
    assert torch.equal(sample(model.clone(), text), plain)
    tuned = comfy.sd.load_lora_for_models(model, None, tiny.lora(base), 1.0, 0.0)[0]
    changed = sample(tuned, text)
    assert (changed - plain).std() > 0.02 * plain.std()
    assert torch.equal(sample(tuned, tiny.conditioning(9, tokens=30)), changed)
    assert torch.equal(sample(model, text), plain)


@pytest.mark.parametrize("with_lora", [False, True])
def test_partial_loading(tiny, base, with_lora):
    model, _ = converted(base)
    if with_lora:
        model = comfy.sd.load_lora_for_models(model, None, tiny.lora(base), 1.0, 0.0)[0]
    x, sigma = torch.randn(2, 4, 8, 8), torch.full((2,), 3.0)
    outputs = []
    for budget in (0, 1, model.model_size() // 2):  # 0 loads everything
        model.patch_model(device_to=CPU, lowvram_model_memory=budget)
        assert model.model.model_lowvram == (budget > 0)
        with torch.no_grad():
            outputs.append(model.model.apply_model(x, sigma, c_crossattn=torch.randn(2, 5, 768)))
        model.unpatch_model(CPU)
    assert all((out - outputs[0]).abs().max() < 1e-5 * outputs[0].std() for out in outputs)


def test_building_where_the_host_creates_weights_lazily(tiny, base, tmp_path, monkeypatch):
    """With dynamic memory the host's layers have no weights until a state dict is assigned to them."""
    memory = pytest.importorskip("comfy.memory_management", reason="this host has no dynamic memory")
    model, _ = converted(base)
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, *concept_files.content(model, "fp32"))
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    lazy = concept.Blueprint.of(base).new_config().get_model({}, "", device="meta").diffusion_model
    assert lazy.time_embed[0].weight is None
    loaded, _ = concept.load(base, str(path))
    monkeypatch.undo()
    assert same(dict(loaded.model.diffusion_model.state_dict()), dict(model.model.diffusion_model.state_dict()))
    assert torch.equal(sample(loaded, tiny.conditioning(1)), sample(model, tiny.conditioning(1)))


def test_half_precision(tiny):
    base = tiny.sd15(seed=1, dtype=torch.float16)
    model, _ = converted(base)
    out = sample(model, tiny.conditioning(1))
    assert torch.isfinite(out).all() and model.model_dtype() is torch.float16


def test_other_packs_get_a_sentence(tiny, base):
    model, _ = converted(base)
    patched = model.clone()
    patched.set_model_attn2_replace(lambda q, k, v, options: q, "input", 1)
    with pytest.raises(RuntimeError, match="null-text concept model.*'to_q'.*base model instead"):
        sample(patched, tiny.conditioning(1))
    touched = model.clone()
    touched.set_model_attn1_patch(lambda n, context, value, options: (n, context, value))
    touched.set_model_attn2_patch(lambda n, context, value, options: (n, context, value))
    touched.set_model_attn2_output_patch(lambda n, options: n * 1.0)
    assert torch.equal(sample(touched, tiny.conditioning(1)), sample(model, tiny.conditioning(1)))


def test_the_host_can_load_the_model_again(tiny, base, tmp_path):
    model, _ = converted(base)
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, *concept_files.content(model, "fp32"))
    loaded, _ = concept.load(base, str(path))
    expected = sample(model, tiny.conditioning(1))
    assert torch.equal(sample(loaded, tiny.conditioning(1)), expected)
    if hasattr(loaded, "cached_patcher_init"):
        factory, args = loaded.cached_patcher_init
        for options in ({}, {"disable_dynamic": True}):
            assert torch.equal(sample(factory(*args, **options), tiny.conditioning(1)), expected)
        own = loaded.clone(force_deepcopy=True)
        assert own.model is not loaded.model and torch.equal(sample(own, tiny.conditioning(1)), expected)
        assert own.attachments[concept.CONCEPT].kind is Kind.NULL_TEXT
    assert "null_text_feature_comfy_model_dtype" in vars(
        loaded.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2) or not hasattr(
        comfy.model_management, "archive_model_dtypes")
