"""Predictions reused between steps: when, from what, and independent of batch and call count."""

import pytest
import torch

from gcfg.guidance import Performance, Reuse

SIGMAS = [10.0, 8.0, 6.0, 4.0, 2.0, 0.0]


def evaluated(performance, sigmas, values=None):
    """For each noise level asked for, whether the prediction had to be evaluated; and what was used."""
    reuse, used, fresh = Reuse(performance, SIGMAS, flow=False), [], []
    reuse._size = lambda sigma: 1.0  # offsets of denoised predictions: easy to read
    for i, sigma in enumerate(sigmas):
        baseline = torch.full((2, 1), float(sigma))
        fresh.append(not reuse.ready("p", sigma))
        value = baseline + (torch.tensor([[1.0 + i], [2.0]]) if values is None else values[i])
        used.append(reuse.store("p", sigma, value, baseline) if fresh[-1] else reuse.recall("p", sigma, baseline))
    return fresh, used


def test_refresh_every_k_steps():
    assert evaluated(Performance(refresh_every=1), SIGMAS[:5])[0] == [True] * 5
    assert evaluated(Performance(refresh_every=2), SIGMAS[:5])[0] == [True, False, True, False, True]
    fresh, used = evaluated(Performance(refresh_every=3), SIGMAS[:5])
    assert fresh == [True, False, False, True, False]
    assert used[1].tolist() == [[8.0 + 1.0], [8.0 + 2.0]]  # the old offset from the new baseline


@pytest.mark.parametrize("flow", [False, True])
def test_a_constant_difference_of_velocities_is_reused_exactly(flow):
    """D = x0-prediction = a(sigma) x - c(sigma) v for v and flow prediction alike: equal v differences, equal o."""
    reuse, gen = Reuse(Performance(refresh_every=3), SIGMAS, flow), torch.Generator().manual_seed(0)
    v = torch.randn((2, 4), generator=gen, dtype=torch.float64)
    for sigma in SIGMAS[:3]:
        c = sigma if flow else sigma / (sigma**2 + 1) ** 0.5
        baseline = torch.randn((2, 4), generator=gen, dtype=torch.float64)
        value = baseline - c * v
        used = (reuse.recall("p", sigma, baseline) if reuse.ready("p", sigma)
                else reuse.store("p", sigma, value, baseline))
        assert torch.allclose(used, value)


def test_steps_are_told_by_noise_level():
    """Heun asks twice at a level, others between two levels: the step is the same, so is the answer."""
    fresh, _ = evaluated(Performance(refresh_every=2), [10.0, 8.0, 8.0, 6.0, 6.0, 4.0, 4.0])
    assert fresh == [True, False, False, True, False, False, False]
    assert evaluated(Performance(refresh_every=2), [10.0, 9.0, 8.0, 7.0, 6.0])[0] == [True, False, False, True, False]


def test_a_restart_evaluates_again():
    fresh, _ = evaluated(Performance(refresh_every=4), [10.0, 8.0, 6.0, 4.0, 2.0, 8.0])
    assert fresh == [True, False, False, False, True, True]


def test_calm_samples_wait_twice_as_long():
    """Sample 0 changes by much, sample 1 by nothing; one prediction serves both, but each sees its own schedule."""
    fresh, used = evaluated(Performance(calm_below=0.1), SIGMAS[:5])
    assert fresh == [True] * 5  # sample 0 always needs it
    assert used[2].tolist() == [[6.0 + 3.0], [6.0 + 2.0]]
    constant = [torch.tensor([[1.0], [2.0]])] * 5
    assert evaluated(Performance(calm_below=0.1), SIGMAS[:5], constant)[0] == [True, True, False, True, False]


def test_hysteresis():
    """Below the limit a sample becomes calm, above twice the limit it stops."""
    offsets = [torch.full((2, 1), v) for v in (1.0, 1.05, 9.0, 1.25, 9.0)]
    fresh, used = evaluated(Performance(calm_below=0.1), SIGMAS[:5], offsets)
    assert fresh == [True, True, False, True, False]  # a change of 16 % keeps a calm sample calm
    assert used[2][0] == pytest.approx(6.0 + 1.05) and used[4][0] == pytest.approx(2.0 + 1.25)
    offsets[3] = torch.full((2, 1), 1.4)
    assert evaluated(Performance(calm_below=0.1), SIGMAS[:5], offsets)[0] == [True, True, False, True, True]


def test_a_sample_does_not_depend_on_its_batch():
    gen = torch.Generator().manual_seed(0)
    offsets = [torch.randn((2, 1), generator=gen).cumsum(0) for _ in range(5)]
    performance = Performance(refresh_every=1, calm_below=0.5)

    def run(rows):
        reuse, out = Reuse(performance, SIGMAS), []
        for sigma, offset in zip(SIGMAS, offsets, strict=False):
            baseline = torch.zeros_like(offset[rows])
            out.append(reuse.recall("p", sigma, baseline) if reuse.ready("p", sigma)
                       else reuse.store("p", sigma, offset[rows], baseline))
        return torch.stack(out)
    together = run(slice(0, 2))
    assert torch.equal(together[:, :1], run(slice(0, 1))) and torch.equal(together[:, 1:], run(slice(1, 2)))


@pytest.mark.parametrize("bad", [dict(refresh_every=0), dict(calm_below=1.0), dict(concept_start=0.6, concept_end=0.4)])
def test_bad_settings(bad):
    with pytest.raises(ValueError):
        Performance(**bad)
