"""Keys and values of a null prompt as constants, on a network of one block."""

import torch
from torch import nn
from torch.nn import functional as F

from gcfg.nulltext.tokens import (
    Tokens,
    has_constant_tokens,
    replace_projections,
    replaced,
    runs,
    tensors_of,
    tokens_of,
    watch,
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, text, mask=None):
        mask = mask if mask is None else mask.bool()[:, None]
        return F.scaled_dot_product_attention(self.q(x), self.k(text), self.v(text), mask)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()

    def forward(self, x, text, mask=None):
        x = x + self.self_attn(x, x)
        return x + self.cross_attn(x, text, mask=mask)


def null_text():
    text = torch.randn(1, 6, 8)
    text[:, 2:] = text[:, 2:3]
    return text


def test_runs_of_equal_tokens():
    starts, counts = runs(null_text()[0])
    assert starts.tolist() == [0, 1, 2] and counts.tolist() == [1, 1, 4]


@torch.no_grad()
def test_text_is_told_from_the_picture_and_kept_exactly():
    block, text = Block(), null_text()
    with watch(block) as seen:
        for x in torch.randn(2, 1, 5, 8):
            expected = block(x, text)
    tokens = seen.null_text()
    assert tokens.keys() == {"cross_attn.k", "cross_attn.v"} and tokens["cross_attn.k"].values.shape == (1, 3, 8)
    with replaced(block, tokens):
        assert torch.allclose(block(x, torch.randn(1, 2, 8)), expected, atol=1e-6)
    assert not torch.allclose(block(x, torch.randn(1, 2, 8)), expected, atol=1e-3)
    replace_projections(block, tokens)
    many = torch.randn(3, 5, 8)
    made = block(torch.cat([x, many]), torch.randn(4, 9, 8), mask=torch.zeros(4, 9))
    assert has_constant_tokens(block) and torch.allclose(made[:1], expected, atol=1e-6)
    assert tokens_of(block.state_dict()).keys() == tokens.keys()


@torch.no_grad()
def test_masked_tokens_are_left_out():
    block, text = Block(), torch.randn(1, 6, 8)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]])
    with watch(block) as seen:
        for x in torch.randn(2, 1, 5, 8):
            expected = block(x, text, mask)
    tokens = seen.null_text()
    assert tokens["cross_attn.v"].values.shape == (1, 2, 8)
    replace_projections(block, tokens)
    assert torch.allclose(block(x, torch.zeros(1, 1, 8)), expected, atol=1e-6)


def test_a_state_dict_gives_them_back():
    tokens = {"blocks.0.cross_attn.k": Tokens(torch.randn(1, 2, 8), torch.tensor([1.0, 511.0]))}
    found = tokens_of(tensors_of(tokens))
    assert found.keys() == tokens.keys() and torch.equal(found["blocks.0.cross_attn.k"].counts, torch.tensor([1., 511]))
