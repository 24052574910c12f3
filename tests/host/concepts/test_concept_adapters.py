"""Concept adapters: extraction, files, and patches that are right in every sampler."""


import comfy.sample
import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.host.concepts import concept, convert
from gcfg_pack.gcfg.host.concepts import files as concept_files
from gcfg_pack.gcfg.nulltext.formats import adapter, checkpoint
from gcfg_pack.gcfg.nulltext.formats.checkpoint import CheckpointError
from gcfg_pack.gcfg.nulltext.formats.identify import Kind
from harness.models.concepts import same, sample, weights_of, written

CPU = torch.device("cpu")


def test_an_adapter_of_full_rank_is_the_concept(base, null_text, text, tiny):
    before, plain = {k: v.clone() for k, v in weights_of(base).items()}, sample(base, text)
    model, report = convert.extract(base, null_text, rank=1280)
    expected = sample(null_text, text)
    output = sample(model, text)
    assert (output - expected).abs().max() < 1e-3 * expected.std()
    assert torch.equal(output, sample(model, tiny.conditioning(8)))
    assert model.model is base.model and "relative error in total 0.00%" in report
    assert torch.equal(sample(base, text), plain) and same(before, weights_of(base))


def test_error_falls_with_the_rank_and_meets_the_target(base, null_text):
    totals = []
    for options in ({"rank": 2}, {"rank": 8}, {"target_error": 0.1}):
        model, report = convert.extract(base, null_text, **options)
        totals.append(float(report.split("total ")[1].split("%")[0]) / 100)
        assert f"{totals[-1]:.2%}" in model.attachments[concept.CONCEPT].provenance.made_by
    assert totals[0] > totals[1] > totals[2] and totals[2] <= 0.1


def test_adapter_files(base, null_text, tmp_path, text, tiny):
    model, _ = convert.extract(base, null_text, rank=4)
    path = written(tmp_path / "a.safetensors", model)
    loaded, description = concept.load(base, path)
    assert torch.equal(sample(loaded, text), sample(model, text))
    assert same(checkpoint.read(written(tmp_path / "b.safetensors", loaded))[0], checkpoint.read(path)[0])
    assert "concept adapter" in description and "extracted with rank 4" in description
    assert "other base weights" not in description
    assert "other base weights" in concept.load(tiny.sd15(seed=7), path)[1]


def test_patches_of_an_adapter_are_ordinary_and_ordered(base, null_text, tmp_path, tiny, text):
    model, _ = convert.extract(base, null_text, rank=4)
    loaded, _ = concept.load(base, written(tmp_path / "a.safetensors", model), strength=0.5)
    known = loaded.attachments[concept.CONCEPT]
    assert known.kind is Kind.ADAPTER and known.strength == 0.5 and known.patches_uuid == loaded.patches_uuid
    for layer in known.adapter.pairs:
        (strength, patch, *_), = loaded.patches[f"diffusion_model.{layer}.weight"]
        assert strength == 0.5 and patch.weights[0].shape[1] == 4
    for block, feature in known.adapter.features.items():
        (strength, (kind, (zero,)), *_), = loaded.patches[f"diffusion_model.{block}.attn2.to_out.0.weight"]
        assert (strength, kind) == (1.0, "set") and not zero.any()
        (strength, (kind, (bias,)), *_), = loaded.patches[f"diffusion_model.{block}.attn2.to_out.0.bias"]
        assert (strength, kind) == (1.0, "set") and torch.equal(bias, feature.flatten())
    merged = known.adapter.merged(weights_of(base), 0.5)
    reference, _ = convert.convert(tiny.sd15(seed=3), text, latents=1, size=8)
    reference.model.diffusion_model.load_state_dict(merged)
    expected = sample(reference, text)
    assert (sample(loaded, text) - expected).abs().max() < 1e-4 * expected.std()


def test_partial_loading_of_an_adapter(base, null_text, text):
    model, _ = convert.extract(base, null_text, rank=4)
    x, sigma, outputs = torch.randn(2, 4, 8, 8), torch.full((2,), 3.0), []
    for budget in (0, 1, model.model_size() // 2):
        model.patch_model(device_to=CPU, lowvram_model_memory=budget)
        with torch.no_grad():
            outputs.append(model.model.apply_model(x, sigma, c_crossattn=torch.randn(2, 5, 768)))
        model.unpatch_model(CPU)
    assert all((out - outputs[0]).abs().max() < 1e-5 * outputs[0].std() for out in outputs)


def test_a_lora_beside_an_adapter(base, null_text, text, tiny):
    model, _ = convert.extract(base, null_text, rank=4)
    tuned = comfy.sd.load_lora_for_models(model, None, tiny.lora(base), 1.0, 0.0)[0]
    expected = sample(tuned, text)
    assert (expected - sample(model, text)).std() > 0.02 * expected.std()
    for form in ("concept", "stock LoRA"):
        with pytest.raises(ValueError, match="further patches.*stock UNet"):
            concept_files.content(tuned, "fp32", form)
    with pytest.raises(ValueError, match="already carries a concept adapter"):
        concept.apply_adapter(model, adapter.Adapter())


def test_an_adapter_as_a_stock_unet(base, null_text, text, tmp_path):
    model, _ = convert.extract(base, null_text, rank=4)
    expected = sample(model, text)
    loaded, description = concept.load(base, written(tmp_path / "u.safetensors", model, form="stock UNet"))
    assert "stock UNet" in description
    assert (sample(loaded, text) - expected).abs().max() < 1e-4 * expected.std()


def test_extraction_refuses_what_does_not_fit(base, null_text, tiny):
    with pytest.raises(CheckpointError, match="The concept model does not fit.*another architecture"):
        convert.extract(tiny.sdxl(), null_text)
    with pytest.raises(ValueError, match="itself a null-text"):
        convert.extract(null_text, null_text)
    with pytest.raises(ValueError, match="already is a base with an adapter"):
        convert.extract(base, convert.extract(base, null_text, rank=2)[0])


def test_a_full_fine_tune_as_an_adapter_keeps_its_text(base, tiny, text):
    tuned = tiny.sd15(seed=2)
    model, _ = convert.extract(base, tuned, rank=1280)
    expected = sample(tuned, text)
    assert not model.attachments[concept.CONCEPT].adapter.features
    assert (sample(model, text) - expected).abs().max() < 1e-3 * expected.std()
