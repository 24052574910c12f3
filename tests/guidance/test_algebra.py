"""The equation: what holds for any weights, whatever the models are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gcfg.guidance import Guidance, Momentum, Plan, Prediction, Progress, Recipe, Shaping, Term, combine, plan

BASELINE = Prediction()
SCALES = st.lists(st.floats(-8, 8, allow_nan=False), min_size=1, max_size=5)


def progress():
    return Progress(lambda p: 14.6 * (1 - p) ** 3, 14.6)


def guidances(scales, **options):
    return [Guidance(Prediction("base", f"prompt {i}"), scale=w, **options) for i, w in enumerate(scales)]


def predictions(names, seed=0, shape=(2, 4, 3, 5), dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    return {p: torch.randn(shape, generator=gen, dtype=dtype) for p in names}


def evaluate(recipe, values, x=None, sigma=3.0, **options):
    return combine(plan(recipe, sigma, progress()), values, values[BASELINE] if x is None else x, sigma, **options)


def named(recipe):
    return {recipe.baseline, *(p for g in recipe.guidances for p in (g.prediction, g.reference))}


@given(SCALES)
def test_coefficients_sum_to_one(scales):
    """Equal predictions stay what they are, whatever the weights."""
    recipe = Recipe(tuple(guidances(scales)))
    value = torch.randn(2, 4, dtype=torch.float64)
    assert torch.allclose(evaluate(recipe, dict.fromkeys(named(recipe), value)), value, atol=1e-9)


@given(SCALES, st.randoms())
def test_order_of_the_guidances_does_not_matter(scales, random):
    terms = guidances(scales)
    shuffled = random.sample(terms, len(terms))
    values = predictions({BASELINE, *(g.prediction for g in terms)})
    assert torch.allclose(evaluate(Recipe(tuple(terms)), values), evaluate(Recipe(tuple(shuffled)), values), atol=1e-9)


@given(SCALES, st.floats(0.05, 14))
def test_eps_v_and_x0_give_the_same(scales, sigma):
    """Linear guidance is one and the same in every parameterisation at one noise level (sigma_data = 1)."""
    recipe = Recipe(tuple(guidances(scales)))
    d = predictions(named(recipe))
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    root = math.sqrt(1 + sigma**2)
    eps = {p: (x - v) / sigma for p, v in d.items()}
    vel = {p: (x / root**2 - v) * root / sigma for p, v in d.items()}
    expected = evaluate(recipe, d, x)
    assert torch.allclose(x - sigma * evaluate(recipe, eps, x), expected, atol=1e-7)
    assert torch.allclose(x / root**2 - evaluate(recipe, vel, x) * sigma / root, expected, atol=1e-7)


def test_one_guidance_is_cfg_to_the_bit():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        recipe = Recipe(tuple(guidances([7.3])))
        values = predictions(named(recipe), dtype=dtype)
        cond, uncond = values[recipe.guidances[0].prediction], values[BASELINE]
        assert torch.equal(evaluate(recipe, values), uncond + (cond - uncond) * 7.3)


def test_no_guidance_is_the_baseline():
    values = predictions([BASELINE])
    assert torch.equal(evaluate(Recipe(), values), values[BASELINE])


def test_the_paper():
    """eps = eps_base(null) + w_concept (eps_concept - eps_base(null)) + w_control (eps_base(c) - eps_base(null))."""
    concept, control = Prediction("concept"), Prediction("base", "glasses")
    recipe = Recipe((Guidance(concept, scale=2.5), Guidance(control, scale=1.5)))
    v = predictions(named(recipe))
    expected = v[BASELINE] + 2.5 * (v[concept] - v[BASELINE]) + 1.5 * (v[control] - v[BASELINE])
    assert torch.allclose(evaluate(recipe, v), expected)
    assert torch.allclose(expected, (1 - 4) * v[BASELINE] + 2.5 * v[concept] + 1.5 * v[control])


def test_instruct_pix2pix():
    """Equation 3 of arXiv 2211.09800: two terms, the second measured from the first."""
    image, both = Prediction("base", "image"), Prediction("base", "image and text")
    recipe = Recipe((Guidance(image, scale=1.5), Guidance(both, image, scale=7.5)))
    v = predictions(named(recipe))
    expected = v[BASELINE] + 1.5 * (v[image] - v[BASELINE]) + 7.5 * (v[both] - v[image])
    assert torch.allclose(evaluate(recipe, v), expected)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0.3, 3)), min_size=2, max_size=4), st.floats(0.1, 5))
def test_a_product_of_gaussians_has_the_analytic_score(gaussians, sigma):
    """Guidances of scale 1 from a flat baseline multiply densities: their scores add up, and so do the guidances."""
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(7, 1)

    def denoised(mean, std):  # E[x0 | x] for x0 ~ N(mean, std^2), Tweedie
        return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    terms = guidances([1.0] * len(gaussians))
    values = {g.prediction: denoised(*p) for g, p in zip(terms, gaussians, strict=True)}
    values[BASELINE] = x  # a flat density: its score is zero
    score = (evaluate(Recipe(tuple(terms)), values, x) - x) / sigma**2
    expected = sum(-(x - mean) / (std**2 + sigma**2) for mean, std in gaussians)
    assert torch.allclose(score, expected, atol=1e-9)


def test_a_mask_confines_a_guidance():
    recipe = Recipe(tuple(guidances([2.0], mask="left")))
    values = predictions(named(recipe))
    mask = torch.zeros(1, 1, 3, 5, dtype=torch.float64)
    mask[..., :2] = 1.0
    result = evaluate(recipe, values, masks={0: mask})
    assert torch.equal(result[..., 2:], values[BASELINE][..., 2:])
    assert torch.equal(result[..., :2], evaluate(Recipe(tuple(guidances([2.0]))), values)[..., :2])


def test_a_baseline_that_cancels_is_not_needed():
    recipe = Recipe(tuple(guidances([0.25, 0.75])))
    values = predictions(named(recipe))
    complete = Plan(tuple(Term(i, g, g.scale) for i, g in enumerate(recipe.guidances)),
                    tuple(values), BASELINE, baseline_cancels=False)
    expected = combine(complete, values, values[BASELINE], 3.0)
    del values[BASELINE]
    result = evaluate(recipe, values, torch.zeros(2, 4, 3, 5, dtype=torch.float64))
    assert torch.allclose(result, expected)


def test_batch_samples_are_independent():
    shaping = Shaping(parallel=0.2, norm_limit=0.5, rescale=0.7, zero_star=True, momentum=-0.5)
    recipe = Recipe(tuple(guidances([4.0, -1.0], shaping=shaping)))
    values = predictions(named(recipe), shape=(3, 4, 3, 5))
    x = torch.randn(3, 4, 3, 5, dtype=torch.float64)
    together = evaluate(recipe, values, x, momentum=Momentum())
    for i in range(3):
        alone = evaluate(recipe, {p: v[i:i + 1] for p, v in values.items()}, x[i:i + 1], momentum=Momentum())
        assert torch.allclose(together[i:i + 1], alone)


def test_settings_that_make_no_sense():
    for bad in (dict(scale=math.nan), dict(scale=math.inf), dict(start=0.6, end=0.5), dict(start=-0.1), dict(end=1.2)):
        with pytest.raises(ValueError, match="must"):
            Guidance(Prediction("concept"), **bad)
