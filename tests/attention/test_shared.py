"""Attention across rows, against attention written out row by row."""

import pytest
import torch
import torch.nn.functional as F

from gcfg.attention.shared import attend_to_references, token_grid, tokens_within


def test_a_picture_sees_its_references_and_they_see_themselves():
    q, k, v = torch.randn(3, 6, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    out = attend_to_references(F.scaled_dot_product_attention, q, k, v, group=3)
    for picture in (0, 3):
        rows = slice(picture, picture + 3)
        expected = F.scaled_dot_product_attention(q[picture], k[rows].flatten(0, 1), v[rows].flatten(0, 1))
        assert torch.allclose(out[picture], expected, atol=1e-6)
    for reference in (1, 2, 4, 5):
        assert torch.allclose(out[reference], F.scaled_dot_product_attention(q[reference], k[reference], v[reference]))


def test_text_tokens_and_unseen_tokens_are_not_shared():
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(1)).unbind()  # (rows, heads, ...)
    seen = torch.tensor([True, False, True, False, False])
    out = attend_to_references(F.scaled_dot_product_attention, q, k, v, group=2, text=2, seen=[seen])
    kept = [2, 4]  # of seven tokens: two of text, then the seen ones
    expected = F.scaled_dot_product_attention(q[0], torch.cat([k[0], k[1][:, kept]], 1),
                                              torch.cat([v[0], v[1][:, kept]], 1))
    assert torch.allclose(out[0], expected, atol=1e-6)


def test_a_reference_equal_to_the_picture_changes_nothing():
    q, k, v = torch.randn(3, 1, 5, 8, generator=torch.Generator().manual_seed(2)).expand(3, 2, 5, 8).unbind()
    out = attend_to_references(F.scaled_dot_product_attention, q, k, v, group=2)
    assert torch.allclose(out[0], F.scaled_dot_product_attention(q, k, v)[0], atol=1e-6)


@pytest.mark.parametrize("tokens, grid", [(64, (8, 8)), (16, (4, 4)), (4, (2, 2))])
def test_token_grid(tokens, grid):
    assert token_grid(8, 8, tokens) == grid


def test_token_grid_of_an_odd_latent_rounds_up():
    assert token_grid(9, 7, 5 * 4) == (5, 4)


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(ValueError, match="13 tokens are no grid over a latent of 8 x 8"):
        token_grid(8, 8, 13)


def test_a_small_mask_keeps_its_most_covered_token():
    mask = torch.zeros(8, 8)
    mask[1, 1] = 1
    assert tokens_within(mask, (2, 2)).tolist() == [True, False, False, False]
    assert tokens_within(torch.ones(8, 8), (2, 2)).all()
