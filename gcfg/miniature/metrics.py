"""Metrics in miniature: Frechet distance in a classifier's features, control accuracy, guidance drift."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .pictures import COLOURS, PLACES, SHAPES

HEADS = (len(SHAPES), len(COLOURS), len(PLACES), 2)
SHAPE, COLOUR, PLACE, LOOK = range(4)
"""What the classifier's heads answer; look is 0 for the base domain and 1 for the concept domain."""


class Classifier(nn.Module):
    """Shape, colour, place and look of pictures (B, 3, 16, 16); its features are those of the Frechet distance."""

    def __init__(self, width: int = 24, features: int = 48):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(2 * width * 16, features), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(features, answers) for answers in HEADS)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.body(pictures)
        return [head(features) for head in self.heads]


@torch.no_grad()
def features_of(classifier: Classifier, pictures: Tensor) -> Tensor:
    """Features (N, F) of pictures (N, 3, 16, 16)."""
    return torch.cat([classifier.body(part) for part in pictures.split(1000)])


@torch.no_grad()
def answers_of(classifier: Classifier, pictures: Tensor) -> Tensor:
    """The classifier's answers (N, 4) on pictures (N, 3, 16, 16): shape, colour, place, look."""
    features = features_of(classifier, pictures)
    return torch.stack([head(features).argmax(1) for head in classifier.heads], dim=1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and covariance (F, F) of features (N, F), in float64."""
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def frechet_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Squared Frechet distance of two Gaussians given by mean and covariance (arXiv 1706.08500).

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``; the trace of the root is the sum of the roots of the
    eigenvalues of ``C_a^(1/2) C_b C_a^(1/2)``, which is symmetric.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0.0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * cross)


def length(delta: Tensor) -> Tensor:
    """Euclidean length of guidances (N, ...), per sample -> (N,)."""
    return delta.flatten(1).norm(dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between guidances (N, ...), per sample -> (N,)."""
    return torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of one value a training seed; the spread of a single value is 0."""
    values = torch.tensor(list(values), dtype=torch.float64)
    return float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
