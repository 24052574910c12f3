"""Every kind of file is told apart, fits strictly or is refused with its name, its faults and a way out."""

import pytest
import torch

from gcfg.nulltext.formats import identify, keymap
from gcfg.nulltext.formats.checkpoint import CheckpointError
from gcfg.nulltext.formats.identify import Kind, unet_weights


@pytest.fixture
def null_text(base_shapes, weights_of):
    return weights_of(keymap.null_text_shapes(base_shapes), seed=2)


@pytest.fixture
def official(null_text):
    return keymap.rename(null_text, keymap.diffusers_names(null_text))


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def refused(tensors, base, *words):
    with pytest.raises(CheckpointError) as error:
        unet_weights(tensors, base, "file.bin")
    message = str(error.value)
    assert message.startswith("file.bin")
    for word in words:
        assert word in message, message


def test_official_and_comfy_names_give_the_same_weights(official, null_text, base_shapes):
    assert same(unet_weights(official, base_shapes, "f")[0], null_text)
    assert unet_weights(null_text, base_shapes, "f") == (null_text, Kind.NULL_TEXT)
    prefixed = {f"model.diffusion_model.{key}": value for key, value in null_text.items()}
    clutter = {"cond_stage_model.x.position_ids": torch.arange(3), "model_ema.num_updates": torch.tensor(3)}
    assert same(unet_weights(prefixed | clutter, base_shapes, "f")[0], null_text)


@pytest.mark.parametrize("dtype", identify.FLOATS)
def test_types_are_kept(official, base_shapes, dtype):
    weights, _ = unet_weights({k: v.to(dtype) for k, v in official.items()}, base_shapes, "f")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}


def test_sd15_and_sdxl_by_name_and_shape_alone(configs, shapes_of):
    for name in ("SD15", "SDXL"):
        shapes = shapes_of(configs[name])
        null_text = keymap.null_text_shapes(shapes)
        names = keymap.diffusers_names(null_text)
        meta = {names[key]: torch.empty(shape, device="meta") for key, shape in null_text.items()}
        assert identify.identify(meta) is Kind.NULL_TEXT
        identify.check_keys(meta, {names[k]: s for k, s in null_text.items()}, name, Kind.NULL_TEXT)


def test_full_unets_in_both_namings(base_weights, base_shapes):
    named = keymap.rename(base_weights, keymap.diffusers_names(base_weights))
    for tensors in (base_weights, named):
        weights, kind = unet_weights(tensors, base_shapes, "f")
        assert kind is Kind.FULL and same(weights, base_weights)


def test_stock_unet_form_and_back(null_text, base_shapes):
    stock = identify.stock_from_null_text(null_text, 6)
    assert {key: tuple(value.shape) for key, value in stock.items()} == base_shapes
    assert identify.identify(stock) is Kind.STOCK_UNET
    weights, kind = unet_weights(stock, base_shapes, "f")
    assert kind is Kind.STOCK_UNET and same(weights, null_text)


def test_missing_and_extra_keys_are_named(official, base_shapes):
    key = "conv_out.bias"
    refused({k: v for k, v in official.items() if k != key}, base_shapes, "1 keys are missing", key, "incompletely")
    refused(official | {"surplus.weight": torch.zeros(1)}, base_shapes, "1 keys are not expected", "surplus.weight")
    refused(official | {key: torch.zeros(5)}, base_shapes, "1 tensors have another shape", key, "(5,)", "(4,)")
    block = "mid_block.attentions.0.transformer_blocks.0"
    mixed = official | {f"{block}.attn2.to_q.weight": torch.zeros(16, 16)}
    refused(mixed, base_shapes, f"{block}.attn2.to_q.weight", "mixes null-text features with cross-attention")


def test_unprepared_official_files(official, base_shapes):
    bare = {key: value for key, value in official.items() if "null_text_feature" not in key}
    assert identify.identify(bare) is Kind.UNPREPARED
    refused(bare, base_shapes, "without its features", "never computed")
    zero = {k: torch.zeros_like(v) if "null_text_feature" in k else v for k, v in official.items()}
    refused(zero, base_shapes, "all null_text_feature tensors are zero")
    one = dict(official)
    one["mid_block.attentions.0.transformer_blocks.0.attn2.null_text_feature"] *= 0
    assert unet_weights(one, base_shapes, "f")[1] is Kind.NULL_TEXT


def test_another_architecture(official, configs, shapes_of):
    refused(official, shapes_of(configs["KOALA"]), "another architecture", "4 cross-attention blocks",
            "base model has 21")


def test_an_inpainting_variant(official, base_shapes):
    wider = dict(official)
    wider["conv_in.weight"] = torch.randn(8, 9, 3, 3)
    refused(wider, base_shapes, "conv_in.weight is (8, 9, 3, 3)", "inpainting")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float64, torch.float8_e4m3fn,
                                   torch.complex64, torch.bool])
def test_other_types_are_refused(official, base_shapes, dtype):
    official["conv_out.bias"] = official["conv_out.bias"].to(dtype)
    refused(official, base_shapes, "'out.2.bias' is", "float16, bfloat16 or float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", identify.FLOATS)
def test_values_that_are_not_finite(official, base_shapes, value, dtype):
    official = {key: tensor.to(dtype) for key, tensor in official.items()}
    official["conv_in.weight"][0, 0, 0, 0] = value
    refused(official, base_shapes, "'input_blocks.0.0.weight' holds NaN or infinite")


FOREIGN = {
    Kind.LORA: ["lora_unet_down_blocks_0.lora_up.weight", "unet.mid.attn1.to_q.lora_A.weight"],
    Kind.CONTROLNET: ["control_model.input_blocks.0.0.weight", "controlnet_cond_embedding.conv_in.weight"],
    Kind.VAE: ["first_stage_model.decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"],
    Kind.TEXT_ENCODER: ["text_model.encoder.layers.0.mlp.fc1.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"],
    Kind.OTHER_MODEL: ["double_blocks.0.img_attn.qkv.weight", "joint_blocks.0.x_block.attn.qkv.weight",
                       "transformer_blocks.0.attn.to_q.weight", "model.diffusion_model.double_blocks.0.x.weight"],
    Kind.UNKNOWN: ["emb_params", "something"],
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in FOREIGN.items() for key in keys
                                           if not key.startswith("model.")])
def test_other_files_are_named(kind, key, base_shapes):
    tensors = {key: torch.zeros(2)}
    assert identify.identify(tensors) is kind
    refused(tensors, base_shapes, kind.value)


def test_an_empty_file(base_shapes):
    refused({}, base_shapes, "no model that GCFG knows")


def test_every_kind_that_is_refused_has_advice():
    usable = {Kind.NULL_TEXT, Kind.NULL_TOKENS, Kind.STOCK_UNET, Kind.FULL, Kind.ADAPTER, Kind.STOCK_LORA}
    assert set(identify._ADVICE) == set(Kind) - usable
