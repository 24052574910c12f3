"""A run that is stopped and started again makes the same weights to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.pictures.loop import Plan, Stage, averaged
from gcfg.training.randomness import generator

PLAN = Plan(steps=40, rate=1e-2, warmup=4, decay=0.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 3, 3))


def loss_of(module: nn.Module):
    def loss(step: int):
        with torch.autocast("cpu", torch.bfloat16):
            return module(torch.randn(4, 3, 8, 8, generator=generator(1, step))).float().square().mean()
    return loss


def run(folder, stops=()) -> dict:
    for stop in (*stops, PLAN.steps):
        module = network()
        stage = Stage(folder, module, PLAN)
        give = loss_of(module)
        while stage.step < stop:
            stage.advance(give(stage.step))
        stage.save()
    return {"weights": {name: value.detach() for name, value in stage.parameters.items()}, "average": averaged(folder)}


def test_resume_is_exact(tmp_path):
    whole, pieces = run(tmp_path / "whole"), run(tmp_path / "pieces", stops=(7, 8, 31))
    for part, tensors in whole.items():
        for name, value in tensors.items():
            assert torch.equal(value, pieces[part][name]), (part, name)


def test_the_state_before_the_fall_of_the_rate_is_kept(tmp_path):
    module = network()
    assert Stage(tmp_path, module, PLAN).run(loss_of(module), say=lambda line: None)
    assert [path.name for path in (tmp_path / "before_decay").iterdir()] == ["step_00000020.state"]


def test_the_rate_rises_stays_and_falls():
    rates = [PLAN.rate_at(step) for step in range(PLAN.steps)]
    assert rates[0] < rates[3] == rates[19] == PLAN.rate and rates[39] < 0.1 * PLAN.rate


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    Stage(tmp_path, network(), PLAN).save()
    with pytest.raises(SystemExit, match="another architecture"):
        Stage(tmp_path, nn.Linear(2, 2), PLAN)


def test_an_untrained_stage_is_named(tmp_path):
    with pytest.raises(SystemExit, match="train that stage first"):
        averaged(tmp_path / "base")
