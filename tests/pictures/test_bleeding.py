"""What the bleeding benchmark measures with: the critic's shares, identity either way round, the seam."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pictures import pairs, train_unet
from benchmarks.pictures.labels import Row
from benchmarks.subjects import bleeding, critic
from gcfg.training.run import state

PAIR = ("green_fox", "blue_cat")


def shares(**named: float) -> torch.Tensor:
    """The critic's answer: shares of characters by name, the rest none of them."""
    found = torch.tensor([named.get(name, 0.0) for name in critic.NAMES])
    return torch.cat([found, 1 - found.sum()[None]])


def test_identity_and_leak_are_relative_to_the_own_runs():
    answers = iter([shares(green_fox=0.8, blue_cat=0.1), shares(blue_cat=0.4)])
    row = bleeding.one(lambda _: next(answers), {"green_fox": 0.8, "blue_cat": 0.5}, PAIR, torch.rand(3, 64, 128))
    assert row["identity"] == pytest.approx((1.0 + 0.8) / 2)
    assert row["leak"] == pytest.approx((0.1 / 0.5 + 0.0) / 2)


def test_characters_that_changed_sides_are_found():
    answers = iter([shares(blue_cat=0.9), shares(green_fox=0.9)])
    row = bleeding.one(lambda _: next(answers), dict.fromkeys(PAIR, 1.0), PAIR, torch.rand(3, 64, 128))
    assert row["identity"] == pytest.approx(0.9) and row["leak"] == 0.0


def test_a_seam_is_a_step_at_the_edge():
    smooth = torch.linspace(0, 1, 128).expand(3, 64, 128)
    cut = torch.cat([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)], 2)
    assert bleeding.seam(smooth) == pytest.approx(1.0, abs=1e-3)
    assert bleeding.seam(cut) == pytest.approx(127.0)


def test_mixtures_are_answered_by_their_shares():
    pictures = torch.stack([torch.full((3, 64, 64), i / 63) for i in range(64)])
    answers = torch.eye(critic.NONE + 1)[torch.arange(64) % (critic.NONE + 1)]
    made, said = critic.mixed(pictures, answers, torch.Generator().manual_seed(0))
    assert torch.allclose(said.sum(1), torch.ones(64)) and (said >= 0).all()
    assert torch.equal(made[33:], pictures[33:])  # half of the batch stays whole
    assert (made[:22].flatten(2).std(2) < 1e-6).all() and (made[22:32].flatten(2).std(2) > 0).any()


def test_pairs_are_joined_at_the_border_and_named_in_their_order():
    def encoder(pictures):
        return torch.nn.functional.avg_pool2d(pictures, 8)[:, [0, 1, 2, 0]]

    rows = [Row("noto", "a", "fox", (), "animal"), Row("noto", "b", "frog", (), "animal")]
    shown = torch.stack([torch.zeros(3, 64, 64), torch.full((3, 64, 64), 0.5)])
    texts = []
    wide = pairs.Pairs.of(shown, rows, encoder, lambda said: texts.extend(said) or torch.zeros(len(said), 77, 64))
    latents, features = wide.draw(16, "base", 3123)
    assert latents.shape == (16, 4, 8, 16) and features.shape == (16, 77, 64)
    for latent, text in zip(latents, texts, strict=True):
        left = {"fox": 0.0, "frog": 0.5}.get(text.split(" ")[0])
        assert left is None or bool((latent[:, :, :8] == left).all())
    assert torch.equal(latents, wide.draw(16, "base", 3123)[0])


def test_pairs_begin_where_the_rate_of_the_base_begins_to_fall(tmp_path):
    with pytest.raises(SystemExit, match="train the stage base first"):
        train_unet.branch(tmp_path)
    kept = tmp_path / "base" / "before_decay"
    kept.mkdir(parents=True)
    state.save(kept, state.State(7, {"weight": torch.ones(2)}))
    train_unet.branch(tmp_path)
    assert state.latest(tmp_path / "pairs").step == 7
    state.save(tmp_path / "pairs", state.State(9, {"weight": torch.ones(2)}), keep=1)
    train_unet.branch(tmp_path)  # has begun: stays
    assert state.latest(tmp_path / "pairs").step == 9
    assert train_unet.PLANS["pairs"].falls_at > train_unet.PLANS["base"].falls_at == pairs.FROM
