"""The wide UNet computes what the narrow one does; what is shipped comes back."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pictures import expand, shipped
from benchmarks.pictures.control import Controlled, ControlNet
from benchmarks.pictures.unet import UNet
from benchmarks.pictures.words import WIDTH
from gcfg.nulltext.attention import replace_cross_attention
from gcfg.training.weights.low_rank import LowRank


def random(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    source = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.data = torch.randn(weight.shape, generator=source) * weight[0].numel() ** -0.5
        else:
            weight.data += 0.1 * torch.randn(weight.shape, generator=source)
    return network.requires_grad_(False)


@pytest.fixture
def inputs():
    torch.manual_seed(3)
    return torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 77, WIDTH)


def wide(tensors) -> UNet:
    network = UNet(320, 768).requires_grad_(False)
    features = {key.removesuffix(".attn2.null_text_feature"): value for key, value in tensors.items()
                if key.endswith("null_text_feature")}
    if features:
        replace_cross_attention(network, features)
    network.load_state_dict(tensors)
    return network


def test_every_channel_twice_is_the_same_function(inputs):
    latents, times, features = inputs
    narrow = random(UNet(), 0)
    expected = narrow(latents, times, features)
    found = wide(expand.unet(narrow.state_dict()))(latents, times, features.repeat(1, 1, 12))
    assert (found - expected).abs().max() < 1e-5 * expected.std()


def test_a_controlnet_for_every_channel_twice_is_the_same_function(inputs):
    latents, times, features = inputs
    hints, narrow = torch.rand(2, 3, 64, 64), Controlled(random(UNet(), 0))
    random(narrow.control, 1)
    expected = narrow(*inputs, hints)
    unet = wide(expand.unet(narrow.unet.state_dict()))
    control = ControlNet(unet)
    control.load_state_dict(expand.controlnet(narrow.control.state_dict()))
    text = features.repeat(1, 1, 12)
    found = unet(latents, times, text, control(latents, times, text, hints))
    assert (found - expected).abs().max() < 1e-5 * expected.std()
    assert (narrow.unet(*inputs) - expected).abs().max() > 0.1 * expected.std()


def test_null_text_features_are_written_twice(inputs):
    latents, times, _ = inputs
    narrow = random(UNet(), 0)
    replace_cross_attention(narrow, {name: torch.randn(160) for name in (
        "input_blocks.1.1.transformer_blocks.0", "middle_block.1.transformer_blocks.0",
        "output_blocks.0.1.transformer_blocks.0", "output_blocks.1.1.transformer_blocks.0")})
    expected = narrow(latents, times, None)
    found = wide(expand.unet(narrow.state_dict()))(latents, times, None)
    assert (found - expected).abs().max() < 1e-5 * expected.std()


def test_low_rank_pairs_are_the_same_difference(inputs):
    latents, times, features = inputs
    narrow = random(UNet(), 0)
    weights = expand.unet(narrow.state_dict())
    pairs = {name: value.detach().normal_(std=0.1) for name, value in LowRank(narrow, 4, seed=0).pairs.items()
             if ".attn2." not in name}
    for name, value in pairs.items():
        layer, _, kind = name.rpartition("/")
        if kind == "up":
            shape = narrow.state_dict()[f"{layer}.weight"].shape
            narrow.get_submodule(layer).weight.data += (value @ pairs[f"{layer}/down"].flatten(1)).view(shape)
            narrow.get_submodule(layer)._forward_hooks.clear()
    for module in narrow.modules():
        module._forward_hooks.clear()
    expected = narrow(latents, times, features)
    merged = expand.adapter(pairs).merged(weights)
    found = wide(merged)(latents, times, features.repeat(1, 1, 12))
    assert (found - expected).abs().max() < 1e-5 * expected.std()


def test_eight_bits_come_back_to_half_a_step():
    torch.manual_seed(0)
    tensors = {"layer.weight": torch.randn(8, 5, 3, 3), "layer.bias": torch.randn(8)}
    back = shipped.unpack(shipped.eighth(tensors))
    step = tensors["layer.weight"].flatten(1).abs().amax(1) / 127
    assert ((back["layer.weight"] - tensors["layer.weight"]).flatten(1).abs().amax(1) <= 0.5001 * step).all()
    assert torch.equal(back["layer.bias"], tensors["layer.bias"].half().float())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="base.safetensors"):
        shipped.read("base", tmp_path)
