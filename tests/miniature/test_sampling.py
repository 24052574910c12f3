"""Sampling runs the method: a Gaussian comes out as it should, and scales that cancel cost nothing."""

import pytest
import torch

from gcfg.miniature import recipes, sampling
from gcfg.miniature.evaluate import captions


class Gaussian:
    """The exact denoiser of a Gaussian with the given mean and standard deviation; counts its rows."""

    def __init__(self, mean, std):
        self.mean, self.std, self.rows = mean, std, 0

    def __call__(self, x, sigma, caption):
        self.rows += len(x)
        s = sigma.view(-1, 1, 1, 1)
        return (self.std**2 * x + s.square() * self.mean) / (self.std**2 + s.square())


NAMED = captions(torch.tensor([[4, 0, 1]]), "colour")
NOISE = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def test_a_gaussian_is_sampled_exactly_in_the_limit():
    mean, std, start = 0.3, 0.5, 40.0 * NOISE
    exact = mean + (start - mean) * std / (40.0**2 + std**2) ** 0.5
    got = sampling.sample({"concept": Gaussian(mean, std)}, recipes.concept_only(), NAMED, NOISE, steps=128)
    assert torch.allclose(got, exact, atol=0.012)  # the last step, from 0.05 to 0, is of first order


def test_the_concept_alone_runs_one_model_only():
    base, concept = Gaussian(0.0, 1.0), Gaussian(0.0, 1.0)
    sampling.sample({"base": base, "concept": concept}, recipes.concept_only(), NAMED, NOISE, 4)
    assert (base.rows, concept.rows) == (0, 4)


def test_gcfg_moves_by_the_scaled_difference():
    models = {"base": Gaussian(0.0, 1.0), "concept": Gaussian(1.0, 1.0)}
    step = sampling.denoise(models, recipes.gcfg(0.5, 2.0), NAMED, NOISE, 1.0, sampling.Momentum())
    assert torch.allclose(step, NOISE * 0.5 + 0.5 * 0.5, atol=1e-6)


def test_batches_do_not_matter():
    models = {"concept": Gaussian(0.3, 0.5)}
    noise = torch.randn((5, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    named = captions(torch.tensor([[4, 0, 1]]).expand(5, 3), "caption")
    whole = sampling.sample_in_batches(models, recipes.concept_only(), named, noise, batch=5, steps=3)
    parts = sampling.sample_in_batches(models, recipes.concept_only(), named, noise, batch=2, steps=3)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_the_projected_recipe_costs_three_evaluations():
    base, concept = Gaussian(0.0, 1.0), Gaussian(1.0, 1.0)
    sampling.denoise({"base": base, "concept": concept}, recipes.across_control(2.0), NAMED, NOISE, 1.0,
                     sampling.Momentum())
    assert (base.rows, concept.rows) == (2, 1)


@pytest.mark.parametrize("prompt, words", [("colour", [0, 6, 0]), ("class and colour", [5, 6, 0]),
                                           ("caption", [5, 6, 12])])
def test_ways_to_write_the_prompt(prompt, words):
    assert captions(torch.tensor([[4, 0, 1]]), prompt)["caption"].tolist() == [words]
