"""The contrastive loss against known numbers."""

import math

import pytest
import torch
from torch.nn import functional as F

from gcfg.training.losses.contrastive import equal, info_nce


def random_features():
    source = torch.Generator().manual_seed(0)
    return torch.randn(8, 768, generator=source), torch.randn(8, 768, generator=source)


def test_known_numbers():
    image, text = random_features()
    assert float(info_nce(image, text)) == pytest.approx(4.47, abs=5e-3)
    official, own = 100.0 * image @ text.T, torch.arange(8)  # features as they are: the trap of the official code
    trapped = (F.cross_entropy(official, own) + F.cross_entropy(official.T, own)) / 2
    assert float(trapped) == pytest.approx(3167.72216796875, rel=1e-5)


def test_aligned_pairs_give_nothing_and_equal_features_log_of_the_batch():
    image, _ = random_features()
    assert float(info_nce(image, image)) < 1e-6
    assert float(info_nce(image[:1].expand(8, -1), image[:1].expand(8, -1))) == pytest.approx(math.log(8), abs=1e-6)


def test_equal_captions_are_no_negatives():
    rows = F.normalize(torch.eye(2), dim=-1).repeat_interleave(2, 0)  # two captions, two pictures each
    labels = ["joe", "joe", "wukong", "wukong"]
    assert float(info_nce(rows, rows)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(info_nce(rows, rows, same=equal(labels))) < 1e-6


def test_length_of_features_does_not_matter():
    image, text = random_features()
    assert torch.allclose(info_nce(image, text), info_nce(3.0 * image, 0.1 * text))
