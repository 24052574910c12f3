"""Semantic preservation and the masked diffusion loss by hand."""

import pytest
import torch

from gcfg.training.losses.semantic import masked_squared_error, semantic_preservation


def test_distance_is_between_nothing_and_two():
    a = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert float(semantic_preservation(a, a)) == pytest.approx(0.0, abs=1e-6)
    assert float(semantic_preservation(a, -a)) == pytest.approx(2.0)


def test_masked_error_is_the_mean_inside_and_a_quarter_of_the_official_one():
    source = torch.Generator().manual_seed(0)
    output, wanted = torch.randn(2, 4, 6, 6, generator=source), torch.randn(2, 4, 6, 6, generator=source)
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, 1:3, 2:5], mask[1] = 1.0, 1.0
    ours = masked_squared_error(output, wanted, mask)
    assert float(ours[0]) == pytest.approx(float((output - wanted)[0, :, 1:3, 2:5].square().mean()), rel=1e-6)
    official = (((output - wanted).square() * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])).mean()
    assert float(official / ours.mean()) == pytest.approx(4.0, rel=1e-6)


def test_empty_mask_is_nothing():
    assert float(masked_squared_error(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2))) == 0.0
