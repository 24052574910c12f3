"""UNet names and shapes against the host's own models and mapping, at real size without memory."""

import comfy.supported_models
import comfy.utils
import pytest

from gcfg_pack.gcfg.nulltext import attention
from gcfg_pack.gcfg.nulltext.formats import keymap

ARCHITECTURES = {
    "SD15": (comfy.supported_models.SD15, 686, 16, 590, {
        "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1, "context_dim": 768, "adm_in_channels": None,
        "use_linear_in_transformer": False}),
    "SDXL": (comfy.supported_models.SDXL, 1680, 70, 1260, {
        "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10, "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
        "use_linear_in_transformer": True}),
}
COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
          "use_temporal_attention": False}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_real_sizes_on_the_meta_device(name):
    family, full, blocks, null_text, config = ARCHITECTURES[name]
    unet = family(COMMON | config).get_model({}, "", device="meta").diffusion_model
    shapes = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    expected = keymap.null_text_shapes(shapes)
    assert (len(shapes), len(keymap.attention_blocks(shapes)), len(expected)) == (full, blocks, null_text)
    attention.replace_cross_attention(unet, attention.empty_features(unet))
    assert {key: tuple(value.shape) for key, value in unet.state_dict().items()} == expected


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sd15", "sdxl"])
def test_names_agree_with_the_hosts_own_mapping(name, tiny):
    if name in ARCHITECTURES:
        family, *_, config = ARCHITECTURES[name]
        config = family(COMMON | config)
        unet = config.get_model({}, "", device="meta").diffusion_model
    else:
        base = getattr(tiny, name)()
        config, unet = base.model.model_config, base.model.diffusion_model
    theirs = {new: old for old, new in comfy.utils.unet_to_diffusers(config.unet_config).items()
              if not old.startswith("class_embedding")}
    ours = keymap.diffusers_names(unet.state_dict())
    assert ours == {key: theirs[key] for key in ours}
