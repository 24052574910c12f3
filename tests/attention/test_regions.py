"""Words in a prompt, maps over a picture, masks that share it."""

import pytest
import torch

from gcfg.attention.regions import blended, feathered, positions_of, regions, word_attention


def test_positions_of_every_occurrence():
    assert positions_of([7, 8], [1, 7, 8, 3, 7, 8]) == [1, 2, 4, 5]
    assert positions_of([9], [1, 7, 8]) == []
    assert positions_of([], [1, 2]) == []


def test_word_attention_is_the_softmax_of_each_head():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 6, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    maps = word_attention(q, k, heads=2, words=[[1], [2, 4]])
    assert maps.shape == (2, 2, 6)
    probabilities = torch.stack([(q[..., h] @ k[..., h].transpose(1, 2) / 2).softmax(-1)
                                 for h in (slice(0, 4), slice(4, 8))]).mean(0)
    assert torch.allclose(maps[:, 0], probabilities[..., 1], atol=1e-6)
    assert torch.allclose(maps[:, 1], probabilities[..., [2, 4]].sum(-1), atol=1e-6)


def test_regions_follow_the_larger_map_and_leave_the_rest():
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, :, 0], maps[0, 1, :, 3] = 3.0, 0.1  # scales of their own
    masks = regions(maps)
    assert torch.equal(masks[0, 0], torch.tensor([1.0, 0, 0, 0]).expand(4, 4))
    assert torch.equal(masks[0, 1], torch.tensor([0.0, 0, 0, 1]).expand(4, 4))
    assert (masks.sum(1) <= 1).all() and masks[0, :, :, 1:3].sum() == 0


def test_threshold_zero_divides_the_whole_picture():
    maps = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(regions(maps, threshold=0.0).sum(1), torch.ones(2, 5, 6))


def test_overlapping_masks_share_the_place():
    masks = torch.zeros(1, 2, 2, 4)
    masks[:, 0, :, :3], masks[:, 1, :, 2:] = 1, 1
    out = blended(masks)
    assert out[0, :, 0, 2].tolist() == [0.5, 0.5] and out[0, :, 0, 0].tolist() == [1, 0]
    assert (blended(masks, feather=1.5).sum(1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("width", [0.0, 1.0, 3.0])
def test_feathering_keeps_a_full_mask(width):
    assert torch.allclose(feathered(torch.ones(1, 2, 6, 6), width), torch.ones(1, 2, 6, 6), atol=1e-6)
