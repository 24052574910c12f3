"""Concept files in the real host: round trips, the host's own loaders as judges, adapters, and the four nodes."""

import os

import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import nodes
import pytest
import torch

from gcfg_pack.gcfg.host import concept, concept_files, convert
from gcfg_pack.gcfg.nulltext import adapter, attention, checkpoint, keymap
from gcfg_pack.gcfg.nulltext.checkpoint import CheckpointError
from gcfg_pack.gcfg.nulltext.identify import Kind
from gcfg_pack.nodes import loaders
from harness.find import PACK

CPU = torch.device("cpu")


def sample(model, positive, negative=None, steps=3, seed=3):
    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, steps, 2.0, "euler", "normal", positive, negative or positive, latent,
                               disable_pbar=True, seed=seed)


def weights_of(model):
    return model.model.diffusion_model.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def written(path, model, dtype="fp32", form="concept", base=None):
    checkpoint.write(path, *concept_files.content(model, dtype, form, base))
    return str(path)


@pytest.fixture
def text(tiny):
    return tiny.conditioning(1)


@pytest.fixture
def null_text(tiny):
    """A null-text model with weights that are not the base's."""
    return convert.convert(tiny.sd15(seed=2), tiny.conditioning(5), latents=2, size=8)[0]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Model, output and registered folders of this test alone."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    registered = {"diffusion_models": ([str(tmp_path / "models" / "diffusion_models")], {".safetensors", ".ckpt"}),
                  "loras": ([str(tmp_path / "output" / "loras")], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", registered)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    concept_files.register_folder()
    (tmp_path / "models" / "diffusion_models").mkdir()
    return tmp_path / "models" / "concept_models"


# round trips ---------------------------------------------------------------------------------------------------------


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


# the host's own loaders ----------------------------------------------------------------------------------------------


def test_stock_unet_form_gives_the_same_weights_back_and_is_complete(base, null_text, tmp_path, text):
    path = written(tmp_path / "stock.safetensors", null_text, form="stock UNet")
    tensors, metadata = checkpoint.read(path)
    assert {key: tuple(value.shape) for key, value in tensors.items()} == concept.shapes(base)
    assert metadata["gcfg.kind"] == "stock_unet"
    loaded, description = concept.load(base, path)
    assert same(weights_of(loaded), weights_of(null_text)) and "stock UNet" in description
    plain = base.clone()
    plain.model.diffusion_model.load_state_dict(tensors)
    assert torch.equal(sample(plain, text), sample(null_text, text))


def test_stock_unet_form_in_the_hosts_unet_loader(models, tiny):
    """A UNet wide enough for the host's detection (13.6 M weights), through the stock node."""
    from harness import shapes, weights

    table = shapes.unet()
    full = {name: weights.draw(name, tuple(shape), 1) for name, shape in table.items()}
    source = models.parent / "diffusion_models" / "base.safetensors"
    checkpoint.write(source, full, {})
    (base,) = nodes.UNETLoader().load_unet("base.safetensors", "default")
    made, _ = convert.convert(base, None, latents=1, size=8)
    expected = sample(made, tiny.conditioning(1))
    written(models.parent / "diffusion_models" / "stock.safetensors", made, form="stock UNet")
    folder_paths.filename_list_cache.clear()
    (stock,) = nodes.UNETLoader().load_unet("stock.safetensors", "default")
    output = sample(stock, tiny.conditioning(1), tiny.conditioning(2))
    assert torch.equal(output, sample(stock, tiny.conditioning(3), tiny.conditioning(4)))
    assert (output - expected).abs().max() < 1e-5 * expected.std()


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_stock_lora_form_in_the_hosts_lora_loader(base, null_text, models, tiny, text, what, caplog):
    if what == "adapter":
        null_text, _ = convert.extract(base, null_text, rank=8)
    expected = sample(null_text, text)
    path = concept_files.save(null_text, "loras/concept", "fp32", "stock LoRA", base)
    (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(base, os.path.basename(path), 1.0)
    assert "not loaded" not in caplog.text.lower()
    output = sample(model, text)
    assert (output - expected).abs().max() < 1e-4 * expected.std()
    assert torch.equal(output, sample(model, tiny.conditioning(8)))
    loaded, description = concept.load(base, path)
    assert (sample(loaded, text) - expected).abs().max() < 1e-4 * expected.std()
    assert "stock LoRA" in description


def test_stock_lora_of_a_model_needs_its_base(base, null_text, tiny):
    with pytest.raises(ValueError, match="base_model"):
        concept_files.content(null_text, "fp32", "stock LoRA")
    with pytest.raises(ValueError, match="another architecture"):
        concept_files.content(null_text, "fp32", "stock LoRA", tiny.sdxl())


# adapters ------------------------------------------------------------------------------------------------------------


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


# refusals and the base -----------------------------------------------------------------------------------------------


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


# nodes ---------------------------------------------------------------------------------------------------------------


def test_folder_is_registered_once_and_filtered(models):
    concept_files.register_folder()
    paths, suffixes = folder_paths.folder_names_and_paths["concept_models"]
    assert paths == [str(models), str(models.parents[1] / "output" / "concept_models")] and models.is_dir()
    assert suffixes == {".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt"}
    (models / "sub").mkdir()
    for name in ("a.safetensors", "sub/b.bin", "notes.txt"):
        (models / name).write_bytes(b"x")
    (models.parent / "diffusion_models" / "c.safetensors").write_bytes(b"x")
    assert concept_files.names() == ["a.safetensors", os.path.join("sub", "b.bin"), "c.safetensors"]


def test_nodes_end_to_end(models, base, tiny, text):
    converted = loaders.GCFGConvertToNullText.execute(base, 1, 0, text)
    model, table = converted.result
    assert "mean of 4 blocks" in table
    saved = [loaders.GCFGSaveConceptModel.execute(model, "concept_models/c", "fp16", "concept").ui.as_dict()["text"][0]
             for _ in range(2)]
    assert [os.path.basename(path) for path in saved] == ["c_00001_.safetensors", "c_00002_.safetensors"]
    name = os.path.basename(saved[0])
    before = loaders.GCFGLoadConceptModel.fingerprint_inputs(concept_name=name, model=None, strength=1.0)
    loaded, description = loaders.GCFGLoadConceptModel.execute(base, name, 1.0).result
    assert name in description
    extracted, report = loaders.GCFGExtractConceptAdapter.execute(base, tiny.sd15(seed=2), 4, 0.0).result
    assert "relative error" in report and torch.isfinite(sample(extracted, text)).all()
    os.utime(saved[0], ns=(1, 1))
    assert loaders.GCFGLoadConceptModel.fingerprint_inputs(concept_name=name) != before
    os.unlink(saved[0])
    folder_paths.filename_list_cache.clear()
    with pytest.raises(CheckpointError, match="no such file"):
        loaders.GCFGLoadConceptModel.execute(base, name, 1.0)


def test_nodes_run_in_inference_mode_as_the_host_runs_them(models, base, tiny, text):
    with torch.inference_mode():
        model, _ = loaders.GCFGConvertToNullText.execute(base, 1, 0).result
        loaders.GCFGSaveConceptModel.execute(model, "concept_models/c", "fp32", "concept")
        loaded, _ = loaders.GCFGLoadConceptModel.execute(base, "c_00001_.safetensors", 1.0).result
        adapted, _ = loaders.GCFGExtractConceptAdapter.execute(base, loaded, 2, 0.0).result
        assert torch.equal(sample(loaded, text), sample(model, text))
        assert torch.isfinite(sample(adapted, text)).all()


def test_hostile_files_through_the_node(models, base, null_text, tmp_path):
    outside = written(tmp_path / "outside.safetensors", null_text)
    (models / "link.safetensors").symlink_to(outside)
    (models / "cut.safetensors").write_bytes(open(outside, "rb").read()[:1000])

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"conv_in.weight": Evil()}, models / "evil.bin")
    for name, words in (("link.safetensors", "leads out of the model folders"), ("cut.safetensors", "broken"),
                        ("evil.bin", "refused")):
        with pytest.raises(CheckpointError, match=words):
            loaders.GCFGLoadConceptModel.execute(base, name, 1.0)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(Exception, match="(?i)outside the output folder"):
        loaders.GCFGSaveConceptModel.execute(null_text, "../../escaped", "fp16", "concept")


def test_schemas_explain_everything():
    for node in loaders.NODES:
        schema = node.define_schema()
        assert schema.node_id == node.__name__ and schema.category == "GCFG/loaders"
        assert schema.display_name and schema.description
        assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
        assert node.GET_NODE_INFO_V1()["category"] == "GCFG/loaders"
        help_page = (PACK / "web" / "docs" / f"{node.__name__}.md").read_text()
        assert help_page.startswith(f"# {schema.display_name}\n")
        assert all(f"**{item.id}**" in help_page for item in schema.inputs)


def test_features_survive_a_stock_lora_file_in_half_precision(base, null_text, tmp_path):
    path = written(tmp_path / "l.safetensors", null_text, "fp16", "stock LoRA", base)
    loaded, _ = concept.load(base, path)
    features = attention.features_of(null_text.model.diffusion_model)
    for block, feature in loaded.attachments[concept.CONCEPT].adapter.features.items():
        assert torch.allclose(feature, features[block], atol=1e-6)
