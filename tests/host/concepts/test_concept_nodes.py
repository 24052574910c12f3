"""The four nodes, their folder, and files for the loaders of the host itself."""

import os

import folder_paths
import nodes
import pytest
import torch

from gcfg_pack.gcfg.host.concepts import concept, convert
from gcfg_pack.gcfg.host.concepts import files as concept_files
from gcfg_pack.gcfg.nulltext import attention
from gcfg_pack.gcfg.nulltext.formats import checkpoint
from gcfg_pack.nodes import loaders
from harness.find import PACK
from harness.models.concepts import same, sample, weights_of, written


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
    from harness.models import shapes, weights

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


def test_features_survive_a_stock_lora_file_in_half_precision(base, null_text, tmp_path):
    path = written(tmp_path / "l.safetensors", null_text, "fp16", "stock LoRA", base)
    loaded, _ = concept.load(base, path)
    features = attention.features_of(null_text.model.diffusion_model)
    for block, feature in loaded.attachments[concept.CONCEPT].adapter.features.items():
        assert torch.allclose(feature, features[block], atol=1e-6)


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
    with pytest.raises(ValueError, match="no such file"):
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
        with pytest.raises(ValueError, match=words):
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


def test_an_error_names_no_class_of_the_pack(models, base):
    with pytest.raises(ValueError, match="no such file in models") as refused:
        loaders.GCFGLoadConceptModel.execute(base, "gone.safetensors", 1.0)
    assert refused.type is ValueError
