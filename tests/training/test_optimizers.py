"""Optimizers, stochastic rounding, the average, low-rank pairs."""

import sys

import pytest
import torch
from torch import nn

from gcfg.training.run import state
from gcfg.training.settings import Settings, SettingsError
from gcfg.training.weights import average, low_rank, optimizers
from gcfg.training.weights.rounding import stochastic_round_

from .conftest import Network


def stepped(kind, steps=3, dtype=torch.float32, rate=1e-2):
    parameter = nn.Parameter(torch.linspace(-1, 1, 24, dtype=dtype).view(4, 6))
    optimizer = optimizers.Optimizer({"w": parameter}, kind, 1e-2, seed=0)
    for step in range(steps):
        parameter.grad = torch.sin(parameter.detach() * 3)
        optimizer.step(step, rate)
    return parameter, optimizer


def test_adamw_is_torchs():
    ours, _ = stepped("adamw")
    theirs = nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6))
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=1e-2)
    for _ in range(3):
        theirs.grad = torch.sin(theirs.detach() * 3)
        optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_adafactor_moves_by_about_the_rate():
    ours, optimizer = stepped("adafactor", 1, rate=1e-3)
    moved = (ours.detach() - torch.linspace(-1, 1, 24).view(4, 6)).square().mean().sqrt()
    assert 0.5e-3 < moved < 1.5e-3
    assert sum(t.numel() for t in optimizer.tensors().values()) < 24


def test_adafactor_keeps_little_of_a_convolution_too():
    weight = nn.Parameter(torch.randn(32, 16, 3, 3))
    optimizer = optimizers.Optimizer({"w": weight}, "adafactor", 0.0, seed=0)
    weight.grad, before = torch.randn(32, 16, 3, 3), weight.detach().clone()
    optimizer.step(0, 1e-3)
    assert not torch.equal(weight, before) and weight.grad is None
    assert sum(value.numel() for value in optimizer.tensors().values()) < 0.05 * weight.numel()


@pytest.mark.parametrize("kind, dtype", [("adamw", torch.float32), ("adafactor", torch.float32),
                                         ("adamw", torch.bfloat16), ("adafactor", torch.bfloat16)])
def test_state_goes_on_exactly(kind, dtype):
    whole, _ = stepped(kind, 5, dtype)
    parameter, first = stepped(kind, 2, dtype)
    second = optimizers.Optimizer({"w": parameter}, kind, 1e-2, seed=0)
    second.load(first.tensors())
    for step in range(2, 5):
        parameter.grad = torch.sin(parameter.detach() * 3)
        second.step(step, 1e-2)
    assert torch.equal(parameter, whole)


@pytest.mark.parametrize("kind", optimizers.PACKAGES)
def test_a_missing_package_says_what_to_do(kind, monkeypatch):
    module, name = optimizers.PACKAGES[kind]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"'{kind}' needs .* pip install {name}, or choose"):
        stepped(kind)


@pytest.mark.parametrize("kind", ["lion", "prodigy"])
def test_optimizers_of_other_packages_go_on_exactly(kind):
    pytest.importorskip(optimizers.PACKAGES[kind][0])
    rate = 1.0 if kind == "prodigy" else 1e-2
    whole, _ = stepped(kind, 40, rate=rate)
    parameter, first = stepped(kind, 20, rate=rate)
    second = optimizers.Optimizer({"w": parameter}, kind, 1e-2, seed=0)
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()})
    for step in range(20, 40):
        parameter.grad = torch.sin(parameter.detach() * 3)
        second.step(step, rate)
    assert torch.equal(parameter, whole) and whole.abs().mean() < 0.9 * torch.linspace(-1, 1, 24).abs().mean()
    assert abs(first.size() - sum(tensor.nbytes for tensor in first.tensors().values())) < 120


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_in_8_bits_is_small_goes_on_exactly_and_follows_adamw(dtype):
    pytest.importorskip("bitsandbytes")

    def begun(kind, weight):
        return optimizers.Optimizer({"w": weight}, kind, 1e-2, seed=0)

    def go_on(weight, optimizer, first, last):
        for step in range(first, last):
            weight.grad = torch.sin(weight.detach() * 3)
            optimizer.step(step, 1e-2)
    start = torch.linspace(-1, 1, 128 * 64).view(128, 64)
    whole, parted, exact = (nn.Parameter(start.to(kind, copy=True)) for kind in (dtype, dtype, torch.float32))
    optimizer, first = begun("adamw 8-bit", whole), begun("adamw 8-bit", parted)
    go_on(whole, optimizer, 0, 20)
    go_on(parted, first, 0, 10)
    second = begun("adamw 8-bit", parted)
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()})
    go_on(parted, second, 10, 20)
    go_on(exact, begun("adamw", exact), 0, 20)
    found, again = optimizer.tensors(), second.tensors()
    assert torch.equal(whole, parted) and all(torch.equal(found[name], again[name]) for name in found | again)
    assert found["w/state1"].dtype == torch.uint8 and sum(t.nbytes for t in found.values()) < 2.5 * start.numel()
    assert (whole.float() - exact).square().mean().sqrt() < 0.1 * (exact - start).square().mean().sqrt()


def test_prodigy_sees_all_weights_at_once():
    with pytest.raises(SettingsError, match="set precision to float32 and switch fused_backward off"):
        stepped("prodigy", dtype=torch.bfloat16)
    with pytest.raises(SettingsError, match="fused_backward off"):
        optimizers.Optimizer({"w": nn.Parameter(torch.ones(2))}, "prodigy", 0.0, 0, apart=True)
    with pytest.raises(SettingsError, match="learning_rate is 1e-05; prodigy finds the rate itself.*set it to 1"):
        Settings(optimizer="prodigy")


def test_weights_together_are_weights_apart():
    def trained(apart):
        parameters = {name: nn.Parameter(torch.linspace(-1, 1, size).view(2, -1)) for name, size in
                      {"a": 12, "b": 20, "without gradient": 4}.items()}
        optimizer = optimizers.Optimizer(parameters, "adamw", 1e-2, seed=0, apart=apart)
        for step in range(4):
            for name in "ab":
                parameters[name].grad = torch.sin(parameters[name].detach() * 3)
            optimizer.step(step, 1e-2)
        return {**{n: p.detach() for n, p in parameters.items()}, **optimizer.tensors()}
    one, other = trained(True), trained(False)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_stochastic_rounding_keeps_small_updates():
    weights, update = torch.full((20000,), 1.0), 1e-5 * torch.ones(20000)
    generator, rounded, nearest = torch.Generator().manual_seed(0), weights.bfloat16(), weights.bfloat16()
    for _ in range(50):
        rounded = stochastic_round_(rounded.float() + update, generator).bfloat16()
        nearest = (nearest.float() + update).bfloat16()
    assert (nearest == 1).all()
    assert (rounded.float() - 1).mean().item() == pytest.approx(50e-5, rel=0.2)
    exact = torch.tensor([1.0, -2.5, 0.0])
    assert torch.equal(stochastic_round_(exact.clone(), generator), exact)


def test_average_warms_up_and_leaves_the_weights_alone():
    parameter = nn.Parameter(torch.zeros(3))
    kept = average.Average({"w": parameter}, 0.5, on_cpu=True)
    parameter.data = torch.ones(3)
    kept.update(1)
    assert torch.allclose(kept.values["w"], torch.full((3,), 1 - 2 / 11))
    place = parameter.data_ptr()
    with kept.applied():
        assert torch.equal(parameter.data, kept.values["w"])
    assert parameter.data_ptr() == place
    without = average.Average({"w": parameter}, 0.0)
    assert torch.equal(without.exported()["w"], parameter)


def test_average_in_bfloat16_keeps_up_in_half_the_memory(make):
    """Rounded to the nearest it would stand still: 1e-3 of the way a step is below its precision."""
    parameter = nn.Parameter(torch.full((20000,), 1.0))
    exact, small = (average.Average({"w": parameter}, 0.999, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    parameter.data = torch.full((20000,), 1.02)
    for step in range(20000, 20200):
        exact.update(step)
        small.update(step)
    assert small.values["w"].dtype == torch.bfloat16
    moved = (small.values["w"].float() - 1.0).mean(), (exact.values["w"] - 1.0).mean()
    assert moved[0].item() == pytest.approx(moved[1].item(), rel=0.05) and moved[1] > 0.003
    runs = [make(kind, ema_precision=kind, target_steps=3) for kind in ("float32", "bfloat16")]
    for run in runs:
        run.run()
    float32, bfloat16 = (state.latest(run.folder.states) for run in runs)
    assert all(torch.equal(p, bfloat16.parameters[name]) for name, p in float32.parameters.items())
    assert 2 * state.size(bfloat16.average) == state.size(float32.average)
    assert all(torch.allclose(float32.average[n], bfloat16.average[n].float(), atol=0.02) for n in float32.average)


def test_low_rank_starts_as_the_network_and_merges_to_what_it_was():
    network = Network()
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 3.0])
    before = network(x, sigma)
    pairs = low_rank.LowRank(network, 3, seed=1)
    assert set(pairs.pairs) == {f"{n}/{h}" for n in ("first", "last", "level") for h in ("up", "down")}
    assert torch.equal(network(x, sigma), before)
    for parameter in pairs.pairs.values():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    after = network(x, sigma)
    assert not torch.allclose(after, before)
    pairs.detach()
    assert torch.equal(network(x, sigma), before)
    adapter = low_rank.to_adapter(pairs.pairs, {})
    network.load_state_dict(adapter.merged(network.state_dict()))
    assert torch.allclose(network(x, sigma), after, atol=1e-5)
