"""Null text of transformers: keys and values of the empty prompt as constants, converted, saved, loaded, sampled."""

from dataclasses import replace

import comfy.sd
import comfy.utils
import pytest
import torch

from gcfg_pack.gcfg.host.concepts import concept, convert
from gcfg_pack.gcfg.host.concepts import files as concept_files
from gcfg_pack.gcfg.host.concepts.concept import READS_TEXT
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.nulltext.formats import checkpoint
from gcfg_pack.gcfg.nulltext.formats.checkpoint import CheckpointError
from gcfg_pack.gcfg.nulltext.formats.identify import Kind, identify
from harness import sampling
from harness.models.concepts import same, written
from harness.models.families import FAMILIES, available
from harness.sampling import relative

SHARED = {"scheduler": "simple", "steps": 2}
EXACT = ["Wan 2.1 text to video", "Wan 2.2 5B", "LTX-Video", "LTX-2 (video and sound)", "Cosmos Predict2"]
JOINT = ["Flux.1", "Qwen-Image", "Z-Image", "HunyuanVideo", "Ideogram 4", "MiniMax H3"]


def flat(sample):
    """A way to sample whose latents are one tensor each, picture and sound behind each other."""
    def run(*args, **kwargs):
        latent = sample(*args, **kwargs)
        return comfy.utils.pack_latents(latent.unbind())[0] if latent.is_nested else latent
    return run


gcfg, stock, through_guider = map(flat, (sampling.gcfg, sampling.stock, sampling.through_guider))


def given(names):
    return [pytest.param(FAMILIES[name], id=name, marks=() if name in available() else pytest.mark.skip(
        f"this ComfyUI has no {name}")) for name in names]


@pytest.fixture(params=given(EXACT))
def family(request):
    return request.param


def null_prompt(family):
    """Text as the encoders of these families give it for "": a token, then padding that is all the same."""
    text = family.conditioning(7)
    text[0][0][:, 1:] = 0.0
    if family.masked:
        text[0][1]["attention_mask"][:, 1:] = 0
    return text


@torch.inference_mode()
def test_it_equals_the_model_under_its_null_prompt_and_ignores_text(family):
    base, tuned, latent, null = family.model(1), family.model(2), family.latents(), null_prompt(family)
    model, words = convert.convert(tuned, null)
    assert words.startswith("Text-free") and words.endswith("exact.")
    expected = stock(tuned, null, null, latent, **SHARED)
    for text in (null, family.conditioning(3), family.conditioning(4, tokens=5)):
        assert relative(stock(model, text, text, latent, **SHARED), expected) < 1e-5
    options = {"concept_scale": 1.5, "control_scale": 2.0, **SHARED}
    prompt = family.conditioning(3)
    assert relative(gcfg(base, prompt, null, latent, model, **options),
                    gcfg(base, prompt, null, latent, tuned, **options)) < 1e-5
    sizes = [sum(value.numel() for value in patcher.model.diffusion_model.state_dict().values())
             for patcher in (model, tuned)]
    assert sizes[0] < sizes[1] or family.config == "LTXAV"  # which makes 1024 tokens of any text, for tiny layers


@torch.inference_mode()
def test_files_keep_it(family, tmp_path):
    base, null, latent = family.model(1), null_prompt(family), family.latents()
    model, _ = convert.convert(family.model(2), null)
    path = written(tmp_path / "null.safetensors", model)
    tensors, metadata = checkpoint.read(path)
    assert identify(tensors) is Kind.NULL_TOKENS and metadata["gcfg.kind"] == "null_tokens"
    loaded, description = concept.load(base, path)
    assert "Text-free" in description and "converted: the connected conditioning" in description
    assert same(dict(loaded.model.diffusion_model.state_dict()), dict(model.model.diffusion_model.state_dict()))
    text = family.conditioning(3)
    assert torch.equal(stock(loaded, text, text, latent, **SHARED), stock(model, text, text, latent, **SHARED))
    small = checkpoint.read(written(tmp_path / "half.safetensors", model, "bf16"))[0]
    assert all(torch.equal(small[key], tensors[key]) for key in tensors if key.endswith("counts"))
    for form, base_model in (("stock UNet", None), ("stock LoRA", base)):
        with pytest.raises(ValueError, match="keys and values of the text are constants"):
            concept_files.content(model, "fp32", form, base_model)
    with pytest.raises(ValueError, match="before Convert"):
        convert.extract(base, model)


@torch.inference_mode()
def test_damaged_files_are_refused(tmp_path):
    family = FAMILIES["Wan 2.1 text to video"]
    base = family.model(1)
    tensors = concept_files.content(convert.convert(base, null_prompt(family))[0], "fp32")[0]
    name = "blocks.1.cross_attn.v.null_text_counts"
    for broken, message in (({name: torch.tensor([1.0, 1e9])}, "whole numbers"), ({name: torch.ones(3)}, "shape"),
                            ({"blocks.0.modulation": torch.zeros(1)}, "shape")):
        checkpoint.write(tmp_path / "broken.safetensors", tensors | broken, {})
        with pytest.raises(CheckpointError, match=message):
            concept.load(base, str(tmp_path / "broken.safetensors"))


@torch.inference_mode()
def test_a_guider_needs_no_text_for_it(family):
    base, other = (convert.convert(family.model(seed), null_prompt(family))[0] for seed in (1, 2))
    link, latent, any_text = [Link(model=other, scale=2.0)], family.latents(), family.conditioning(3)
    options = {"scale": 0.0, **SHARED}
    expected = through_guider(base, any_text, any_text, latent, link, **options)
    assert relative(through_guider(base, any_text, None, latent, link, **options), expected) < 1e-5
    with pytest.raises(ValueError, match="predicts nothing without text"):
        through_guider(family.model(1), any_text, None, latent, link, **options)
    with pytest.raises(ValueError, match="Guidance 2: .* predicts nothing without text"):
        through_guider(base, any_text, None, latent, [Link(model=family.model(1), scale=2.0)], **options)


@pytest.mark.parametrize("family", given(JOINT))
@torch.inference_mode()
def test_where_text_and_picture_are_one_sequence_the_node_says_what_to_do(family):
    with pytest.raises(ValueError, match="a LoRA, measured under the empty prompt"):
        convert.convert(family.model(1), family.conditioning(1))


@pytest.mark.skipif("LTX-2 (video and sound)" not in available(), reason="this ComfyUI has no LTX-2")
@torch.inference_mode()
def test_where_the_noise_level_modulates_the_text_it_cannot_become_constants():
    """``cross_attention_adaln``: keys and values are made of modulated text."""
    family = FAMILIES["LTX-2 (video and sound)"]
    family = replace(family, unet={**family.unet, "cross_attention_adaln": True})
    with pytest.raises(ValueError, match="together with the picture or the noise level"):
        convert.convert(family.model(1), family.conditioning(1))


def test_the_empty_prompt_has_to_be_connected():
    with pytest.raises(ValueError, match="connect that as 'conditioning'"):
        convert.convert(FAMILIES["Wan 2.1 text to video"].model(1))


@pytest.mark.skipif("Ideogram 4" not in available(), reason="this ComfyUI has no Ideogram 4")
@torch.inference_mode()
def test_ideogram_predicts_without_text():
    family = FAMILIES["Ideogram 4"]
    base, text = family.model(1), family.conditioning(1)
    made = through_guider(base, text, None, family.latents(), **SHARED)
    assert relative(made, through_guider(base, text, [[None, {}]], family.latents(), **SHARED)) == 0.0
    assert relative(made, through_guider(base, text, family.conditioning(2), family.latents(), **SHARED)) > 0.01


@pytest.mark.parametrize("family", given(["Wan 2.1 text to video", "Z-Image"]))
@torch.inference_mode()
def test_an_adapter_of_a_transformer_is_a_lora_under_the_empty_prompt(family, tmp_path):
    base, tuned, latent = family.model(1), family.model(2), family.latents()
    own = dict(base.model.diffusion_model.named_parameters())
    for name, parameter in tuned.model.diffusion_model.named_parameters():
        if not name.endswith((".weight", ".bias")):  # which the host does not patch
            parameter.copy_(own[name])
    adapted, report = convert.extract(base, tuned, rank=1000)
    assert READS_TEXT in report
    text, null = family.conditioning(1), family.conditioning(2)
    expected = stock(tuned, text, null, latent, **SHARED)
    assert relative(stock(adapted, text, null, latent, **SHARED), expected) < 1e-2
    loaded, description = concept.load(base, written(tmp_path / "own.safetensors", adapted))
    assert READS_TEXT in description
    assert torch.equal(stock(loaded, text, null, latent, **SHARED), stock(adapted, text, null, latent, **SHARED))
    file = comfy.utils.load_torch_file(written(tmp_path / "stock.safetensors", adapted, form="stock LoRA"))
    lora = comfy.sd.load_lora_for_models(base, None, file, 1.0, 0.0)[0]
    assert relative(stock(lora, text, null, latent, **SHARED), expected) < 1e-2
    whole = written(tmp_path / "whole.safetensors", tuned)
    with pytest.raises(CheckpointError, match="Load Diffusion Model"):
        concept.load(base, whole)
    assert same(comfy.utils.load_torch_file(whole), dict(tuned.model.diffusion_model.state_dict()))
