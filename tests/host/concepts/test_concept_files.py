"""Concept files in the real host: round trips, whatever names and forms they have, and refusals."""


import comfy.sample
import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.host.concepts import concept, convert
from gcfg_pack.gcfg.host.concepts import files as concept_files
from gcfg_pack.gcfg.nulltext.formats import checkpoint, keymap
from gcfg_pack.gcfg.nulltext.formats.checkpoint import CheckpointError
from harness.models.concepts import same, sample, weights_of, written

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_save_and_load_are_bit_equal(base, null_text, tmp_path, text, dtype):
    path = written(tmp_path / "c.safetensors", null_text, dtype)
    loaded, description = concept.load(base, path)
    wanted = {key: value.to(concept_files.DTYPES[dtype]) for key, value in weights_of(null_text).items()}
    assert all(torch.equal(weights_of(loaded)[key].float(), value.float()) for key, value in wanted.items())
    again, _ = checkpoint.read(written(tmp_path / "again.safetensors", loaded, dtype))
    assert same(again, checkpoint.read(path)[0])
    assert {value.dtype for value in again.values()} == {concept_files.DTYPES[dtype]}
    if dtype == "fp32":
        assert torch.equal(sample(loaded, text), sample(null_text, text))
    for words in ("null-text concept model", "SD15", "Calibration residual", "converted: 2 latents"):
        assert words in description


def test_the_file_is_diffusers_keyed_and_the_official_pickle_loads(base, null_text, tmp_path, text):
    tensors, metadata = checkpoint.read(written(tmp_path / "c.safetensors", null_text))
    names = keymap.diffusers_names(weights_of(null_text))
    assert tensors.keys() == set(names.values()) and metadata["gcfg.kind"] == "null_text"
    assert same(keymap.rename(tensors, {new: old for old, new in names.items()}), dict(weights_of(null_text)))
    comfy_keyed = dict(weights_of(null_text))
    for number, content in enumerate((tensors, {"state_dict": tensors}, comfy_keyed,
                                      {f"model.diffusion_model.{k}": v for k, v in comfy_keyed.items()})):
        for suffix in (".bin", ".pt"):
            path = tmp_path / f"official{number}{suffix}"
            torch.save(content, path)
            loaded, _ = concept.load(base, str(path))
            assert same(weights_of(loaded), weights_of(null_text))
    assert torch.equal(sample(loaded, text), sample(null_text, text))


def test_sdxl(tiny, tmp_path):
    base, text = tiny.sdxl(seed=1), tiny.conditioning(1, width=2048, pooled=1280)
    made, _ = convert.convert(tiny.sdxl(seed=2), None, latents=2, size=8)
    expected = sample(made, text)
    for form in ("concept", "stock UNet"):
        loaded, description = concept.load(base, written(tmp_path / f"{form}.safetensors", made, form=form))
        assert torch.equal(sample(loaded, text), expected) and "SDXL" in description


def test_full_fine_tunes_keep_their_text_and_can_be_converted(base, tiny, tmp_path, text):
    tuned = tiny.sd15(seed=2)
    path = written(tmp_path / "full.safetensors", tuned)
    loaded, description = concept.load(base, path)
    assert torch.equal(sample(loaded, text), sample(tuned, text))
    assert "still reads text" in description and "Convert to Null-Text Model" in description
    made, _ = convert.convert(loaded, text, latents=2, size=8)
    expected, _ = convert.convert(tuned, text, latents=2, size=8)
    assert same(weights_of(made), weights_of(expected))


def test_loras_are_saved_with_the_model(base, null_text, tiny, tmp_path, text):
    tuned = comfy.sd.load_lora_for_models(null_text, None, tiny.lora(base), 1.0, 0.0)[0]
    expected = sample(tuned, text)
    loaded, _ = concept.load(base, written(tmp_path / "c.safetensors", tuned))
    assert (sample(loaded, text) - expected).abs().max() < 1e-4 * expected.std()
    assert (sample(null_text, text) - expected).std() > 0.02 * expected.std()


def test_files_that_do_not_fit_are_refused_before_anything_is_built(base, null_text, tiny, tmp_path):
    tensors, _ = checkpoint.read(written(tmp_path / "c.safetensors", null_text))
    broken = {
        "1 keys are missing.*conv_out.bias": {k: v for k, v in tensors.items() if k != "conv_out.bias"},
        "without its features": {k: v for k, v in tensors.items() if "null_text_feature" not in k},
        "all null_text_feature tensors are zero": {
            k: v * 0 if "null_text_feature" in k else v for k, v in tensors.items()},
        "is a LoRA": tiny.lora(base),
    }
    for words, content in broken.items():
        torch.save(content, tmp_path / "x.bin")
        with pytest.raises(CheckpointError, match=words):
            concept.load(base, str(tmp_path / "x.bin"))
    with pytest.raises(CheckpointError, match="another architecture"):
        concept.load(tiny.sdxl(), str(tmp_path / "c.safetensors"))
    with pytest.raises(ValueError, match="itself a null-text"):
        concept.load(null_text, str(tmp_path / "c.safetensors"))


def test_a_patched_and_loaded_base_gives_its_original_weights(base, null_text, tiny, text, tmp_path):
    tuned = comfy.sd.load_lora_for_models(base, None, tiny.lora(base), 1.0, 0.0)[0]
    before = {key: value.clone() for key, value in weights_of(base).items()}
    sample(tuned, text)
    tuned.patch_model(device_to=CPU)  # its patches are in the weights now
    assert same(concept.originals(tuned), before) and same(concept.weights(tuned, patched=False), before)
    patched = concept.weights(tuned)
    tuned.unpatch_model(CPU)
    changed = [key for key in before if not torch.equal(before[key], patched[key])]
    assert changed and all(".attn" in key for key in changed)
    assert same(concept.weights(base), before) and same(dict(weights_of(base)), before)


def test_values_that_overflow_the_type_are_refused(null_text):
    with torch.no_grad():
        weights_of(null_text)["out.2.bias"].fill_(1e6)
    with pytest.raises(ValueError, match="conv_out.bias.*not finite in float16.*bf16"):
        concept_files.content(null_text, "fp16")
    assert concept_files.content(null_text, "bf16")
