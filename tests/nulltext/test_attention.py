"""The null-text layer in a transformer block with the residual semantics of the host."""

import copy

import pytest
import torch
from torch import nn

from gcfg.nulltext import attention, calibrate


class CrossAttention(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(width, width, bias=False), nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, context):
        weights = (self.to_q(x) @ self.to_k(context).mT / x.shape[-1] ** 0.5).softmax(-1)
        return self.to_out(weights @ self.to_v(context))


class Block(nn.Module):
    def __init__(self, width=8, context=6):
        super().__init__()
        self.norm2, self.attn2, self.ff = nn.LayerNorm(width), CrossAttention(width, context), nn.Linear(width, width)

    def forward(self, x, context):
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(x) + x


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x, context):
        for block in self.blocks:
            x = block(x, context)
        return x


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return Unet().double()


def measured(unet, x, context):
    with torch.no_grad(), calibrate.measure(unet) as means:
        unet(x, context)
    return means


def test_exact_where_all_context_tokens_are_equal(unet):
    x, context = torch.randn(3, 5, 8).double(), torch.randn(1, 1, 6).double().expand(3, 7, 6)
    means = measured(unet, x, context)
    expected = unet(x, context)
    assert max(mean.residual for mean in means.values()) < 1e-6
    attention.replace_cross_attention(unet, calibrate.features(means))
    assert (unet(x, None) - expected).abs().max() < 1e-6
    assert attention.is_null_text(unet)


def test_context_is_ignored_exactly_and_no_weight_is_left(unet):
    features = {f"blocks.{i}": torch.randn(8) for i in range(2)}
    attention.replace_cross_attention(unet, features)
    x = torch.randn(2, 5, 8).double()
    assert torch.equal(unet(x, torch.randn(2, 7, 6)), unet(x, torch.randn(2, 9, 6)))
    assert {k for k in unet.state_dict() if "attn2" in k or "norm2" in k} == {
        f"blocks.{i}.attn2.null_text_feature" for i in range(2)}
    assert not any("attn2" in name for name, _ in unet.named_parameters())
    found = attention.features_of(unet)
    assert all(torch.equal(found[name].flatten(), feature) for name, feature in features.items())


def test_the_block_is_the_feature_plus_the_residual(unet):
    feature = torch.randn(8).double()
    attention.replace_cross_attention(unet, {"blocks.0": feature, "blocks.1": feature})
    block, x = unet.blocks[0], torch.randn(2, 5, 8).double()
    middle = feature + x
    assert torch.equal(block(x, None), block.ff(middle) + middle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_takes_type_and_shape_of_the_input(dtype):
    layer = attention.NullTextAttention(torch.randn(8))
    out = layer(torch.zeros(2, 5, 8, dtype=dtype), context=torch.zeros(2, 3, 6), value=None, transformer_options={})
    assert out.shape == (2, 5, 8) and out.dtype is dtype


@pytest.mark.parametrize("name", attention.PROJECTIONS)
def test_removed_projections_say_so(name):
    stub = getattr(attention.NullTextAttention(torch.zeros(8)), name)
    with pytest.raises(RuntimeError, match=f"null-text concept model.*{name}"):
        stub(torch.zeros(1, 8))
    with pytest.raises(RuntimeError, match="null-text concept model"):
        stub[0]
    with pytest.raises(AttributeError, match="no 'weight'.*null-text concept model"):
        stub.weight
    assert not hasattr(stub, "comfy_cast_weights")
    with pytest.raises(RuntimeError, match="null-text"):
        list(stub)


def test_copies_and_pickles_keep_the_layer():
    layer = attention.NullTextAttention(torch.randn(8))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.null_text_feature, layer.null_text_feature)
    assert twin.null_text_feature.data_ptr() != layer.null_text_feature.data_ptr()
    with pytest.raises(RuntimeError):
        twin.to_q(torch.zeros(1))


def test_features_must_match_the_blocks(unet):
    with pytest.raises(ValueError, match="2 cross-attention blocks.*there are 1.*blocks.1"):
        attention.replace_cross_attention(unet, {"blocks.0": torch.zeros(8)})


def test_a_training_step_leaves_the_features_alone(unet):
    attention.replace_cross_attention(unet, {f"blocks.{i}": torch.randn(8).double() for i in range(2)})
    before = {name: feature.clone() for name, feature in attention.features_of(unet).items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.1)
    unet(torch.randn(2, 5, 8).double(), None).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(before[name], feature) for name, feature in attention.features_of(unet).items())
