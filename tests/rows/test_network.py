"""Adapters on some rows of a batch: every row gives what a network of its own, with the adapter merged, gives."""

import copy

import pytest
import torch
from torch import nn

from gcfg.rows.batch import Regrouped
from gcfg.rows.changes import Added, Decomposed, InputMixed, LayerChange, Replaced, Slice, Turned
from gcfg.rows.differences import Dense, Kronecker, LowRank, held, linear_map
from gcfg.rows.network import RowAdapter, RowwiseNetwork


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
        self.group, self.layer, self.rms = nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.linear, self.attn2 = nn.Linear(8, 8), Attention()

    def forward(self, x, context):
        h = self.group(self.conv(x)).flatten(2).mT
        h = self.rms(self.linear(self.layer(h)))
        return h + self.attn2(h, context=context)


def drawing(seed):
    gen = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=gen) * 0.3


def adapter(seed, null_text=False):
    draw = drawing(seed)
    layers = {"conv": LayerChange((Added(LowRank(draw(8, 2), draw(2, 4, 3, 3))),), bias=draw(8)),
              "group": LayerChange(weight=draw(8), bias=draw(8)),
              "layer": LayerChange(weight=draw(8)) if seed % 2 else LayerChange(bias=draw(8)),
              "rms": LayerChange(weight=draw(8)),
              "linear": LayerChange((Added(LowRank(draw(8, 3), draw(3, 8))), Added(LowRank(draw(8, 1), draw(1, 8)))))}
    if null_text:
        return RowAdapter(layers, {"attn2": draw(8)})
    return RowAdapter({**layers, "attn2.to_k": LayerChange((Added(LowRank(draw(8, 2), draw(2, 8))),))})


def merged(network, wanted):
    """A copy with the adapter in its weights: what it makes of the columns of a unit matrix are the weights."""
    own = copy.deepcopy(network)
    with torch.no_grad():
        for name, change in wanted.layers.items():
            layer = own.get_submodule(name)
            for step in change.steps:
                low_rank = step.difference
                layer.weight += (low_rank.up @ low_rank.down.flatten(1)).view_as(layer.weight)
            if change.weight is not None:
                layer.weight += change.weight
            if change.bias is not None:
                layer.bias += change.bias
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
                                    ("n", "m", "n"), ("n", "a", "m", None), (None, None), ("a", "a"), ("n", "n")])
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


def kinds(draw):
    """Steps on a linear layer 6 -> 8, and what each makes of its weight."""
    left, right, dense = draw(4, 3), draw(2, 2), draw(8, 6)
    pair, part, half = LowRank(draw(8, 2), draw(2, 6)), LowRank(draw(3, 2), draw(2, 6)), LowRank(draw(8, 2), draw(2, 4))
    turn, first, second = torch.linalg.qr(draw(8, 8))[0], draw(6, 2), draw(2, 6)
    by_output, by_input = 1.0 + draw(8), 1.0 + draw(6)

    def whole(low_rank):
        return low_rank.up @ low_rank.down

    def sliced(w, dim, start, change):
        w = w.clone()
        w.narrow(dim, start, change.shape[dim]).add_(change)
        return w
    return [
        (Added(Dense(dense, 0.5)), lambda w: w + 0.5 * dense),
        (Added(pair, keep=0.7), lambda w: 0.7 * w + whole(pair)),
        (Added(Kronecker(left, right)), lambda w: w + torch.kron(left, right)),
        (Replaced(draw(1, 1), (8, 6)), None),
        (Turned(lambda z: turn @ z, keep=0.9), lambda w: turn @ (0.9 * w)),
        (InputMixed(first, second, pair, keep=0.9), lambda w: 0.9 * (w + w @ first @ second) + whole(pair)),
        (Decomposed(pair, 0.6, outputs=by_output),
         lambda w: torch.lerp(w, by_output[:, None] * (w + whole(pair)), 0.6)),
        (Decomposed(pair, 0.6, inputs=by_input, keep=0.8),
         lambda w: torch.lerp(0.8 * w, by_input * (0.8 * w + whole(pair)), 0.6)),
        (Slice(Added(part), 0, 4, 3), lambda w: sliced(w, 0, 4, whole(part))),
        (Slice(Added(half), 1, 2, 4), lambda w: sliced(w, 1, 2, whole(half))),
        (Slice(Decomposed(part, 1.0, outputs=by_output[:3]), 0, 5, 3),
         lambda w: torch.cat([w[:5], by_output[:3, None] * (w[5:] + whole(part))])),
        (Slice(InputMixed(first, second, part), 0, 1, 3),
         lambda w: torch.cat([w[:1], w[1:4] + w[1:4] @ first @ second + whole(part), w[4:]])),
    ]


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("owners", [(None, "a", "a"), ("a", None, "a"), ("a", "a", "a")])
def test_every_kind_of_step(number, owners):
    """Alone, and between two others of another kind."""
    draw = drawing(5)
    layer = nn.Sequential(nn.Linear(6, 8)).requires_grad_(False)
    every = kinds(draw)
    for chosen in ([every[number]], [every[0], every[number], every[6]], [every[5], every[number]]):
        weight = layer[0].weight.clone()
        for step, change in chosen:
            weight = step.weight.expand(8, 6) if change is None else change(weight)
        bias = draw(8)
        adapted = RowAdapter({"0": LayerChange(tuple(step for step, _ in chosen), bias=bias)})
        x = draw(3, 5, 6)
        with RowwiseNetwork(layer, {"a": adapted}) as rowwise, rowwise.applied(owners):
            result = layer(x)
        for i, owner in enumerate(owners):
            expected = nn.functional.linear(x[i], weight, layer[0].bias + bias) if owner else layer[0].forward(x[i])
            assert torch.allclose(result[i], expected, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(dims, groups):
    draw = drawing(6)
    layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](4, 8, 3, stride=2, padding=1, groups=groups)
    network = nn.Sequential(layer).requires_grad_(False)
    dense, by_output = draw(*layer.weight.shape), 1.0 + draw(8)
    steps = [Added(Dense(dense)), Decomposed(Dense(dense), 0.5, outputs=by_output)]
    weight = layer.weight + dense
    column = by_output.view(8, *(1,) * (dims + 1))
    weight = torch.lerp(weight, column * (weight + dense), 0.5)
    if groups == 1:
        pair = LowRank(draw(8, 2), draw(2, 4, *(3,) * dims))
        steps.append(Added(pair))
        weight = weight + torch.einsum("o r, r ... -> o ...", pair.up, pair.down)
    x = draw(2, 4, *(7,) * dims)
    adapted = RowAdapter({"0": LayerChange(tuple(steps))})
    with RowwiseNetwork(network, {"a": adapted}) as rowwise, rowwise.applied((None, "a")):
        result = network(x)
    assert torch.allclose(result[0], layer.forward(x[:1])[0], atol=1e-6)
    expected = linear_map(layer, x[1:], weight) + layer.bias.view(-1, *(1,) * dims)
    assert torch.allclose(result[1:], expected, atol=1e-5)


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


class TokensFirst(nn.Module):
    """Sees its batch in the second dimension, as some video networks do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x.transpose(0, 1)).transpose(0, 1)


def test_regrouped_batches_are_told_and_run_by_owner():
    network = TokensFirst().requires_grad_(False)
    adapters, x = {"a": RowAdapter({"linear": adapter(1).layers["linear"]})}, torch.randn(2, 6, 8)
    with RowwiseNetwork(network, adapters) as rowwise:
        with pytest.raises(Regrouped, match="Linear sees 6 rows of a batch of 2"), rowwise.applied((None, "a")):
            network(x)
        with rowwise.applied(("a", "a")):
            result = network(x)
    assert torch.allclose(result, merged(network, adapters["a"])(x), atol=1e-6)


class Reading(nn.Module):
    """Takes the weight of its norm without calling the norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(8)

    def forward(self, x):
        return nn.functional.rms_norm(x, (8,), weight=self.norm.weight.to(x.dtype), eps=self.norm.eps)


def test_weights_that_are_read_directly_are_noticed_and_exchanged():
    network = Reading().requires_grad_(False)
    adapters, x = {"a": RowAdapter({"norm": LayerChange(weight=drawing(1)(8))})}, torch.randn(2, 6, 8)
    before = network.norm.weight
    with RowwiseNetwork(network, adapters) as rowwise:
        with pytest.raises(Regrouped, match="reads the weights of 'norm' by itself"), rowwise.applied((None, "a")):
            network(x)
        assert rowwise.regroups
        with pytest.raises(Regrouped, match="reads the weights"), rowwise.applied((None, "a")):
            network(x)
        with rowwise.applied(("a", "a")):
            result = network(x)
        with rowwise.applied((None, None)):
            plain = network(x)
    assert torch.allclose(result, merged(network, adapters["a"])(x), atol=1e-6)
    assert torch.equal(plain, network(x)) and network.norm.weight is before


def test_a_matrix_that_is_read_directly_is_refused():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return x @ self.linear.weight
    network = Product().requires_grad_(False)
    with RowwiseNetwork(network, {"a": RowAdapter({"linear": adapter(1).layers["linear"]})}) as rowwise:
        with pytest.raises(Regrouped), rowwise.applied(("a",)):
            network(torch.zeros(1, 8))
        with pytest.raises(RuntimeError, match="load the model a second time"), rowwise.applied(("a",)):
            network(torch.zeros(1, 8))


def test_sizes_and_types():
    made = adapter(1).to(torch.device("cpu"), torch.bfloat16)
    assert made.layers["conv"].steps[0].difference.up.dtype == torch.bfloat16
    assert held(adapter(1)) == 2 * made.nbytes == 4 * sum(
        sum(t.numel() for s in c.steps for t in (s.difference.up, s.difference.down))
        + sum(t.numel() for t in (c.weight, c.bias) if t is not None) for c in adapter(1).layers.values())
