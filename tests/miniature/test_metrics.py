"""Metrics at values that are known beforehand."""

import pytest
import torch

from gcfg.miniature import metrics


def random_moments(seed, count=400, width=6):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn((width, width), generator=generator)
    return metrics.moments(torch.randn((count, width), generator=generator) @ mix)


def test_a_set_is_at_distance_zero_from_itself():
    a = random_moments(0)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)


def test_frechet_distance_is_symmetric():
    a, b = random_moments(0), random_moments(1)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_of_gaussians_with_diagonal_covariance():
    a = torch.tensor([0.0, 1.0, 2.0]).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0])).double()
    b = torch.tensor([1.0, 1.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0])).double()
    assert metrics.frechet_distance(a, b) == pytest.approx(5.0 + (1.0 - 2.0) ** 2 + 0.0 + (3.0 - 1.0) ** 2)


def test_frechet_distance_of_covariances_that_do_not_commute():
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    cov_a = torch.diag(torch.tensor([1.0, 4.0])).double()
    cov_b = turn @ torch.diag(torch.tensor([9.0, 1.0])).double() @ turn.T
    product = cov_a @ cov_b  # 2 x 2: tr(root) = sqrt(tr + 2 sqrt(det))
    root = (product.trace() + 2.0 * product.det().sqrt()).sqrt()
    expected = cov_a.trace() + cov_b.trace() - 2.0 * root
    mean = torch.zeros(2).double()
    assert metrics.frechet_distance((mean, cov_a), (mean, cov_b)) == pytest.approx(float(expected))


def test_lengths_and_cosines_are_per_sample():
    a = torch.zeros(2, 3, 4, 4)
    a[0, 0, 0, 0], a[1, 1, 1, 1] = 3.0, 2.0
    b = a.clone()
    b[0] = -b[0]
    assert metrics.length(a).tolist() == [3.0, 2.0]
    assert metrics.cosine(a, b).tolist() == pytest.approx([-1.0, 1.0])


def test_mean_and_spread():
    assert metrics.mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert metrics.mean_and_spread([4.0]) == (4.0, 0.0)
