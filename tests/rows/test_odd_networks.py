"""Adapters on rows of networks that do something of their own with their layers."""

import pytest
import torch
from torch import nn

from gcfg.rows.batch import Regrouped
from gcfg.rows.changes import Added, LayerChange
from gcfg.rows.differences import LowRank
from gcfg.rows.network import RowAdapter, RowwiseNetwork


class Attention(nn.Module):
    """A cross-attention in the host's layout that adds what it reads, times a factor."""

    def __init__(self):
        super().__init__()
        self.to_out = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x, context, factor=None):
        return self.to_out(x + context.mean(1, keepdim=True) * (1.0 if factor is None else factor))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn2 = Attention()

    def forward(self, x, context, **more):
        return self.attn2(x, context, **more)


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    return Network().requires_grad_(False), torch.randn(3, 6, 8), torch.randn(3, 5, 8)


NULL = {"n": RowAdapter(constants={"attn2": torch.arange(8.0)})}


def test_a_packs_own_forward_of_a_cross_attention_runs_and_stays(drawn):
    """It was taken away with ours: until the model was loaded again, the pack did nothing, without a word."""
    network, x, context = drawn
    network.attn2.forward = lambda x, context: 2.0 * x
    with RowwiseNetwork(network, NULL) as rowwise, rowwise.applied((None, "n", None)):
        result = network(x, context)
    assert torch.equal(result[[0, 2]], 2.0 * x[[0, 2]]) and torch.equal(result[1], torch.arange(8.0).expand(6, 8))
    assert torch.equal(network(x, context), 2.0 * x)


def test_a_pack_that_calls_the_projections_itself_gets_the_constant(drawn):
    network, x, _ = drawn
    plain = network.attn2.to_out(x)
    with RowwiseNetwork(network, NULL) as rowwise, rowwise.applied((None, "n", None)):
        result = network.attn2.to_out(x)
    assert torch.equal(result[[0, 2]], plain[[0, 2]]) and torch.equal(result[1], torch.arange(8.0).expand(6, 8))


def test_a_packs_own_forward_of_a_layer_stays():
    network = nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)
    network[0].forward = own = lambda x: 2.0 * x
    with RowwiseNetwork(network, {"a": RowAdapter({"0": LayerChange(bias=torch.ones(8))})}) as rowwise:
        with rowwise.applied((None, "a")):
            result = network(torch.ones(2, 8))
    assert torch.equal(result, torch.tensor([2.0, 3.0]).view(2, 1).expand(2, 8)) and network[0].forward is own


def test_what_is_no_batch_goes_to_every_row(drawn):
    network, x, context = drawn
    factor = torch.tensor(0.5)
    plain = network(x, context, factor=factor)
    with RowwiseNetwork(network, NULL) as rowwise, rowwise.applied((None, "n", None)):
        result = network(x, context, factor=factor)
    assert torch.allclose(result[[0, 2]], plain[[0, 2]], atol=1e-6)


def test_a_cross_attention_that_sees_other_rows_is_noticed(drawn):
    network, x, context = drawn
    with RowwiseNetwork(network, NULL) as rowwise:
        with pytest.raises(Regrouped, match="sees 6 rows of a batch of 3"), rowwise.applied((None, "n", None)):
            network(x.repeat(2, 1, 1), context.repeat(2, 1, 1))
        assert rowwise.regroups
        with rowwise.applied(("n", "n", "n")):
            result = network(x.repeat(2, 1, 1), context.repeat(2, 1, 1))
    assert torch.equal(result, torch.arange(8.0).expand(6, 6, 8))


def test_a_layer_that_gives_other_rows_is_noticed():
    class Folding(nn.Linear):
        def forward(self, x):
            return super().forward(x).flatten(0, 1)
    network = nn.Sequential(Folding(8, 8)).requires_grad_(False)
    adapters = {"a": RowAdapter({"0": LayerChange(bias=torch.ones(8))})}
    with RowwiseNetwork(network, adapters) as rowwise, pytest.raises(Regrouped), rowwise.applied((None, "a")):
        network(torch.zeros(2, 6, 8))


def test_a_layer_that_computes_in_one_type_and_then_in_another():
    class Casting(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
    network, x = nn.Sequential(Casting(8, 8)).requires_grad_(False), torch.randn(2, 8)
    added = LayerChange((Added(LowRank(torch.ones(8, 2), torch.ones(2, 8))),))
    with RowwiseNetwork(network, {"a": RowAdapter({"0": added})}) as rowwise, rowwise.applied((None, "a")):
        results = [network(x.to(dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    assert [r.dtype for r in results] == [torch.float32, torch.float64, torch.bfloat16]
    assert all(torch.allclose(r.float(), results[0], atol=0.3) for r in results)


class Reading(nn.Module):
    """Takes the weight and the bias of its norm without calling the norm, in a list or by name."""

    def __init__(self, by_name):
        super().__init__()
        self.norm, self.by_name = nn.LayerNorm(8), by_name

    def forward(self, x):
        weight, bias = (self.norm.weight, self.norm.bias) if self.by_name else torch.stack(
            [self.norm.weight, self.norm.bias])
        return nn.functional.layer_norm(x, (8,), weight=weight, bias=bias)


@pytest.mark.parametrize("by_name", [False, True])
def test_weights_that_are_read_directly_are_exchanged_and_given_back(by_name):
    network, x = Reading(by_name).requires_grad_(False), torch.randn(2, 6, 8)
    before = dict(network.norm.named_parameters())
    adapters = {"a": RowAdapter({"norm": LayerChange(weight=torch.ones(8), bias=torch.ones(8))})}
    with RowwiseNetwork(network, adapters) as rowwise:
        with pytest.raises(Regrouped, match="reads the weights of 'norm' by itself"), rowwise.applied(("a", "a")):
            network(x)
        with rowwise.applied(("a", "a")):
            result = network(x)
        with pytest.raises(ZeroDivisionError), rowwise.applied(("a", "a")):
            raise ZeroDivisionError
    assert torch.allclose(result, nn.functional.layer_norm(x, (8,), 2 * torch.ones(8), torch.ones(8)), atol=1e-6)
    assert all(value is before[name] for name, value in network.norm.named_parameters())


def test_a_pass_of_a_part_of_the_network_says_nothing_of_the_rest():
    network, x = Reading(True).requires_grad_(False), torch.randn(2, 6, 8)
    with RowwiseNetwork(network, {"a": RowAdapter({"norm": LayerChange(bias=torch.ones(8))})}) as rowwise:
        with rowwise.applied(("a", "a"), whole=False):
            pass
        with pytest.raises(Regrouped, match="reads the weights of 'norm' by itself"), rowwise.applied(("a", "a")):
            network(x)


class Blending(nn.Module):
    """Catches what goes wrong in its first layer, as hosts do when memory is short."""

    def __init__(self):
        super().__init__()
        self.attn2, self.linear = Attention(), nn.Linear(8, 8)

    def forward(self, x, context):
        try:
            x = self.attn2(x, context, factor="none")
        except TypeError:
            x = self.attn2(x, context)
        return self.linear(x)


def test_rows_are_as_before_where_an_attention_failed():
    torch.manual_seed(0)
    network, x, context = Blending().requires_grad_(False), torch.randn(3, 6, 8), torch.randn(3, 5, 8)
    adapters = {**NULL, "a": RowAdapter({"linear": LayerChange(bias=torch.ones(8))})}
    plain = network(x, context)
    with RowwiseNetwork(network, adapters) as rowwise, rowwise.applied(("n", None, "a")):
        result = network(x, context)
    assert torch.allclose(result[1:], plain[1:] + torch.tensor([0.0, 1.0]).view(2, 1, 1), atol=1e-6)
