"""Adapters on some rows of a batch: every row gives what a network of its own, with the adapter merged, gives."""

import copy

import pytest
import torch
from torch import nn

from gcfg.nulltext.rowwise import LayerDelta, RowAdapter, Rows, RowwiseNetwork, subtracted


class Attention(nn.Module):
    """A cross-attention in the host's layout."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0))
        self.rows = []

    def forward(self, x, context=None):
        self.rows.append(len(x))
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.group, self.layer = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.linear, self.attn2 = nn.Linear(8, 8), Attention()

    def forward(self, x, context):
        h = self.group(self.conv(x)).flatten(2).mT
        h = self.linear(self.layer(h))
        return h + self.attn2(h, context=context)


def adapter(seed, null_text=False):
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=gen) * 0.3
    layers = {"conv": LayerDelta(((draw(8, 2), draw(2, 4, 3, 3)),), bias=draw(8)),
              "group": LayerDelta(weight=draw(8), bias=draw(8)), "layer": LayerDelta(weight=draw(8)),
              "linear": LayerDelta(((draw(8, 3), draw(3, 8)), (draw(8, 1), draw(1, 8)))),
              "attn2.to_k": LayerDelta(((draw(8, 2), draw(2, 8)),))}
    return RowAdapter(layers, {"attn2": draw(8)} if null_text else {})


def merged(network, wanted):
    """A copy with the adapter in its weights."""
    own = copy.deepcopy(network)
    with torch.no_grad():
        for name, delta in wanted.layers.items():
            layer = own.get_submodule(name)
            for up, down in delta.pairs:
                layer.weight += (up @ down.flatten(1)).view_as(layer.weight)
            if delta.weight is not None:
                layer.weight += delta.weight
            if delta.bias is not None:
                layer.bias += delta.bias
        for name, constant in wanted.constants.items():
            out = own.get_submodule(name).to_out[0]
            out.weight.zero_()
            out.bias.copy_(constant)
    return own


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def batch(rows):
    gen = torch.Generator().manual_seed(1)
    return torch.randn((rows, 4, 6, 6), generator=gen), torch.randn((rows, 5, 8), generator=gen)


@pytest.mark.parametrize("owners", [(None, "a", "a", "b"), ("a", None, "a", "b", None, "a"), ("n", None, "n"),
                                    ("n", "m", "n"), ("n", "a", "m", None), (None, None)])
def test_rows_equal_merged_networks(network, owners):
    adapters = {"a": adapter(1), "b": adapter(2), "n": adapter(3, null_text=True), "m": adapter(4, null_text=True)}
    x, context = batch(len(owners))
    plain = network(x, context)
    with RowwiseNetwork(network, adapters) as rowwise, rowwise.applied(owners):
        result = network(x, context)
    for i, owner in enumerate(owners):
        alone = network if owner is None else merged(network, adapters[owner])
        assert torch.allclose(result[i:i + 1], alone(x[i:i + 1], context[i:i + 1]), atol=1e-5)
        assert (owner is None) == torch.allclose(result[i], plain[i], atol=1e-5)


def test_null_text_rows_skip_the_cross_attention(network):
    adapters = {"n": adapter(3, null_text=True)}
    x, context = batch(3)
    with RowwiseNetwork(network, adapters) as rowwise:
        with rowwise.applied(("n", None, "n")):
            one = network(x, context)
        with rowwise.applied(("n",) * 3):
            network(x, context)
        with rowwise.applied(("n", None, "n")):
            assert torch.equal(network(x, context * torch.tensor([2.0, 1.0, 3.0]).view(3, 1, 1)), one)
    assert network.attn2.rows == [1, 1]


def test_without_rows_and_afterwards_nothing_changes(network):
    x, context = batch(2)
    plain = network(x, context)
    rowwise = RowwiseNetwork(network, {"n": adapter(3, null_text=True)})
    with rowwise:
        assert torch.equal(network(x, context), plain)
        with pytest.raises(ZeroDivisionError), rowwise.applied(("n", None)):
            raise ZeroDivisionError
        assert torch.equal(network(x, context), plain)
    assert torch.equal(network(x, context), plain)
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in network.modules())


def test_batches_in_tiles():
    """Some attention patches run a layer on b * k rows; the rows of a sample stay together."""
    layer, delta = nn.Linear(8, 8), adapter(1).layers["linear"]
    x = torch.randn(6, 5, 8)
    y = layer(x).detach()
    for owners in ((None, "a", None), ("a", None, "a")):
        out = y.clone()
        Rows(owners).add_("a", layer, delta, x, out)
        taken = [i for i, owner in enumerate(owners) if owner for i in (2 * i, 2 * i + 1)]
        expected = y.clone()
        expected[taken] += delta(layer, x[taken]).detach()
        assert torch.allclose(out, expected, atol=1e-6)


def test_batches_that_cannot_be_told_apart_are_refused():
    with pytest.raises(RuntimeError, match="3 rows of a batch of 2.*remove the patch"):
        Rows(("a", None)).add_("a", nn.Linear(8, 8), LayerDelta(), torch.zeros(3, 8), torch.zeros(3, 8))


def test_a_delta_can_be_taken_away_again(network):
    delta = adapter(1).layers["conv"]
    x, _ = batch(2)
    assert torch.allclose(delta(network.conv, x) + subtracted(delta)(network.conv, x), torch.zeros(()), atol=1e-6)
