"""UNet names: the counts of the papers' formats, the documented blocks, and a mapping without loss."""

import pytest

from gcfg.nulltext.formats import keymap

COUNTS = {"SD15": (686, 16, 590), "SDXL": (1680, 70, 1260)}

BLOCKS = {  # METHOD.md section 2
    "input_blocks.1.1": "down_blocks.0.attentions.0", "input_blocks.2.1": "down_blocks.0.attentions.1",
    "input_blocks.4.1": "down_blocks.1.attentions.0", "input_blocks.5.1": "down_blocks.1.attentions.1",
    "input_blocks.7.1": "down_blocks.2.attentions.0", "input_blocks.8.1": "down_blocks.2.attentions.1",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.3.1": "up_blocks.1.attentions.0", "output_blocks.4.1": "up_blocks.1.attentions.1",
    "output_blocks.5.1": "up_blocks.1.attentions.2", "output_blocks.6.1": "up_blocks.2.attentions.0",
    "output_blocks.7.1": "up_blocks.2.attentions.1", "output_blocks.8.1": "up_blocks.2.attentions.2",
    "output_blocks.9.1": "up_blocks.3.attentions.0", "output_blocks.10.1": "up_blocks.3.attentions.1",
    "output_blocks.11.1": "up_blocks.3.attentions.2",
}


@pytest.mark.parametrize("name", COUNTS)
def test_key_counts(name, configs, shapes_of):
    shapes = shapes_of(configs[name])
    null_text = keymap.null_text_shapes(shapes)
    assert (len(shapes), len(keymap.attention_blocks(shapes)), len(null_text)) == COUNTS[name]
    assert not any(".norm2." in key for key in null_text)
    assert [key for key in null_text if ".attn2." in key] == [k for k in null_text if k.endswith("null_text_feature")]


def test_sd15_features_have_12480_values(configs, shapes_of):
    null_text = keymap.null_text_shapes(shapes_of(configs["SD15"]))
    assert sum(shape[2] for key, shape in null_text.items() if key.endswith("null_text_feature")) == 12480


def test_documented_blocks(configs, shapes_of):
    names = keymap.diffusers_names(keymap.null_text_shapes(shapes_of(configs["SD15"])))
    feature = ".transformer_blocks.0.attn2.null_text_feature"
    assert {k.removesuffix(feature): v.removesuffix(feature) for k, v in names.items() if k.endswith(feature)} == BLOCKS


@pytest.mark.parametrize("name", ["SD15", "SDXL", "tiny", "KOALA"])
@pytest.mark.parametrize("null_text", [False, True])
def test_names_are_one_to_one_and_invert(name, null_text, configs, shapes_of):
    shapes = shapes_of(configs[name])
    if null_text:
        shapes = keymap.null_text_shapes(shapes)
    names = keymap.diffusers_names(shapes)
    assert len(set(names.values())) == len(shapes)
    there = keymap.rename(shapes, names)
    assert keymap.rename(there, {new: old for old, new in names.items()}) == shapes


def test_null_text_form_of_either_naming_is_the_same(configs, shapes_of):
    shapes = shapes_of(configs["SDXL"])
    names = keymap.diffusers_names(shapes)
    null_text = keymap.null_text_shapes(shapes)
    renamed = keymap.rename(null_text, keymap.diffusers_names(null_text))
    assert keymap.null_text_shapes(keymap.rename(shapes, names)) == renamed


@pytest.mark.parametrize("key", ["double_blocks.0.img_attn.qkv.weight", "input_blocks.1.1.time_stack.0.norm1.weight",
                                 "input_blocks.1.0.time_mixer.mix_factor"])
def test_other_architectures_are_refused(key, base_shapes):
    with pytest.raises(ValueError, match="cannot|only SD1.5"):
        keymap.diffusers_names([*base_shapes, key])
