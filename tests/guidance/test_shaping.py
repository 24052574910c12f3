"""Projection, norm limit, momentum, rescale and zero-star against their papers' formulas."""

import pytest
import torch

from gcfg.guidance import Guidance, Momentum, Prediction, Progress, Recipe, Shaping, combine, plan
from gcfg.guidance.shaping import damped_scale, dot, limit_norm, project, rms, zero_star_reference

BASELINE, COND = Prediction(), Prediction("base", "positive")


def values(seed=0, size=8):
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn((2, 4, size, size), generator=gen, dtype=torch.float64) for _ in range(3)]


def guided(shaping, scale=4.0, seed=0, momentum=None, sigma=3.0):
    cond, uncond, x = values(seed)
    recipe = Recipe((Guidance(COND, scale=scale, shaping=shaping),))
    progress = Progress(lambda p: 10 * (1 - p), 10.0)
    return combine(plan(recipe, sigma, progress), {BASELINE: uncond, COND: cond}, x, sigma, momentum=momentum)


def test_defaults_change_nothing():
    cond, uncond, _ = values()
    assert Shaping().is_neutral
    assert torch.equal(guided(Shaping()), uncond + (cond - uncond) * 4.0)


@pytest.mark.parametrize("shaping", [Shaping(norm_limit=1e9), Shaping(parallel=1.0 + 1e-12), Shaping(rescale=1e-12)])
def test_settings_close_to_neutral_change_next_to_nothing(shaping):
    assert torch.allclose(guided(shaping), guided(Shaping()), atol=1e-6)


def test_projection_splits_the_guidance():
    cond, uncond, _ = values()
    parallel, orthogonal = project(cond - uncond, cond)
    assert torch.allclose(parallel + orthogonal, cond - uncond)
    assert dot(orthogonal, cond).abs().max() < 1e-3
    expected = uncond + 4.0 * (0.25 * parallel + 1.5 * orthogonal)
    assert torch.allclose(guided(Shaping(parallel=0.25, orthogonal=1.5)), expected)


def test_norm_limit_does_not_depend_on_resolution():
    for size in (4, 32):
        cond, uncond, _ = values(size=size)
        limited = limit_norm(cond - uncond, 0.5 * rms(uncond))
        assert torch.allclose(rms(limited), 0.5 * rms(uncond))
    small = 1e-3 * (cond - uncond)
    assert torch.equal(limit_norm(small, rms(uncond)), small)


def test_rescale_reaches_the_contrast_of_the_prediction():
    cond, _, _ = values()
    full = guided(Shaping(rescale=1.0))
    assert torch.allclose(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)), rtol=1e-5)
    assert torch.allclose(guided(Shaping(rescale=0.5)), 0.5 * full + 0.5 * guided(Shaping()))


def test_zero_star_is_its_papers_formula():
    """v = s v_u + w (v_c - s v_u), s = <v_c, v_u> / |v_u|^2 per sample, with v proportional to x - D."""
    cond, uncond, x = values()
    v_c, v_u = x - cond, x - uncond
    s = (v_c * v_u).sum((1, 2, 3), keepdim=True) / (v_u**2).sum((1, 2, 3), keepdim=True)
    expected = x - (s * v_u + 4.0 * (v_c - s * v_u))
    assert torch.allclose(guided(Shaping(zero_star=True)), expected, atol=1e-5)
    assert torch.allclose(zero_star_reference(x, uncond, uncond), uncond, atol=1e-6)


def test_momentum_is_keyed_on_the_noise_level():
    one = torch.ones(1, 1)
    m = Momentum()
    assert float(m.update(0, 10.0, one, 0.5)) == 1.0
    assert float(m.update(0, 5.0, one, 0.5)) == 1.5
    assert float(m.update(0, 5.0, one, 0.5)) == 1.5  # asked again, as Heun does
    assert float(m.update(0, 2.0, one, 0.5)) == 1.75
    assert float(m.update(0, 7.0, one, 0.5)) == 1.5  # a restart continues from the level above
    assert float(m.update(0, 5.0, one, 0.5)) == 1.75
    assert float(m.update(0, 20.0, one, 0.5)) == 1.0
    assert float(m.update(1, 4.0, one, 0.5)) == 1.0  # each guidance has its own


def test_momentum_keeps_few_levels():
    m = Momentum()
    for sigma in range(100, 0, -1):
        m.update(0, float(sigma), torch.ones(1, 1), -0.5)
    assert len(m._sums[0]) == Momentum.DEPTH


def test_zero_predictions_give_zeros_not_nan():
    zero = torch.zeros(2, 4, 8, 8)
    assert torch.equal(project(zero, zero)[0], zero)
    assert torch.equal(limit_norm(zero, rms(zero)), zero)
    assert torch.equal(zero_star_reference(zero, zero, zero), zero)


@pytest.mark.parametrize("bad", [dict(momentum=1.0), dict(rescale=1.5), dict(norm_limit=-1.0), dict(zero_init_steps=-1),
                                 dict(balance=-1.0), dict(parallel=float("inf"))])
def test_bad_settings(bad):
    with pytest.raises(ValueError):
        Shaping(**bad)


@pytest.mark.parametrize("steps", [4, 8])
def test_ratio_damping_is_raags_formula_along_a_sampling_run(steps):
    """Euler steps of a flow on velocities, guided as in arXiv 2508.03442, against the same run in denoised space."""
    cond, uncond, noise = values()
    alpha, scale = 12.0, 7.5
    recipe = Recipe((Guidance(COND, scale=scale, shaping=Shaping(ratio_damping=alpha)),))
    progress = Progress(lambda p: 1 - p, 1.0)
    x = y = noise
    sigmas, scales = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64).tolist(), []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        v_c, v_u = (x - (1 - sigma) * cond) / sigma, (x - (1 - sigma) * uncond) / sigma
        rho = torch.linalg.vector_norm(v_c - v_u, dim=(1, 2, 3)) / torch.linalg.vector_norm(v_u, dim=(1, 2, 3))
        w = (1 + (scale - 1) * torch.exp(-alpha * rho)).view(-1, 1, 1, 1)
        x = x + (v_u + w * (v_c - v_u)) * (following - sigma)
        scales.append(w)
        found = {BASELINE: (1 - sigma) * uncond, COND: (1 - sigma) * cond}
        denoised = combine(plan(recipe, sigma, progress), found, y, sigma)
        y = y + (y - denoised) / sigma * (following - sigma)
    assert torch.allclose(x, y, atol=1e-6)
    assert len({float(w[0]) for w in scales}) > 1 and all((w > 1).all() and (w < scale).all() for w in scales[1:])


def test_ratio_damping_is_that_of_diffusers():
    guiders = pytest.importorskip("diffusers.guiders.magnitude_aware_guidance", reason="this diffusers has none")
    cond, uncond, x = values()
    velocities = (x - cond).flatten(1), (x - uncond).flatten(1)  # its norm takes no more dimensions than two
    expected = x - guiders.mambo_guidance(*velocities, 4.0, alpha=0.5).view_as(x)
    assert torch.allclose(guided(Shaping(ratio_damping=0.5)), expected, atol=1e-6)


def test_ratio_damping_leaves_what_is_not_beyond_the_prediction():
    cond, uncond, x = values()
    for scale in (-2.0, 0.5, 1.0):
        assert damped_scale(scale, x, cond, uncond, 12.0) == scale
    assert torch.equal(damped_scale(4.0, x, uncond, uncond, 12.0), torch.full((2, 1, 1, 1), 4.0))


STYLE = Prediction("base", "style")


def balance_of(recipe, predictions, x, **options):
    """What the guidances of a recipe add at sigma 3, by index, and their sum with the baseline."""
    added = {}
    step = plan(recipe, 3.0, Progress(lambda p: 10 * (1 - p), 10.0), added="start" in options)
    found = combine(step, predictions, x, 3.0, observe=lambda term, value: added.update({term.index: value}), **options)
    return added, found


@pytest.mark.parametrize("first", [True, False], ids=["control first", "control last"])
def test_balance_is_the_size_over_that_of_the_control_guidance(first):
    """|s (D_i - R)| = scale balance |w (D_c - D_0)| per sample, along the guidance, wherever it stands in the chain."""
    cond, uncond, x = values()
    style = values(seed=5)[0] * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1)
    control = Guidance(COND, scale=4.0)
    kept = Guidance(STYLE, scale=-1.5, shaping=Shaping(balance=0.5))
    added, total = balance_of(Recipe((control, kept) if first else (kept, control)),
                              {BASELINE: uncond, COND: cond, STYLE: style}, x)
    expected = -(style - uncond) * 1.5 * 0.5 * rms(4.0 * (cond - uncond)) / rms(style - uncond)
    assert torch.allclose(added[int(first)], expected)
    assert torch.allclose(total, uncond + 4.0 * (cond - uncond) + expected, atol=1e-5)  # sizes are in float32


def test_balance_counts_the_samplers_own_guidance():
    cond, uncond, x = values()
    style = values(seed=5)[0]
    recipe = Recipe((Guidance(STYLE, scale=1.0, shaping=Shaping(balance=2.0)),))
    added, _ = balance_of(recipe, {BASELINE: uncond, STYLE: style}, x, start=uncond + 7.0 * (cond - uncond))
    assert torch.allclose(rms(added[0]), 2.0 * 7.0 * rms(cond - uncond))


def test_two_balances_are_both_measured_by_the_control_guidance_alone():
    cond, uncond, x = values()
    style, concept = values(seed=5)[0], Prediction("concept")
    guidances = (Guidance(COND), Guidance(STYLE, scale=1.0, shaping=Shaping(balance=1.0, parallel=0.0)),
                 Guidance(concept, scale=1.0, shaping=Shaping(balance=3.0)))
    found = {BASELINE: uncond, COND: cond, STYLE: style, concept: values(seed=6)[0]}
    added, _ = balance_of(Recipe(guidances), found, x)
    for index, share in ((1, 1.0), (2, 3.0)):
        assert torch.allclose(rms(added[index]), share * rms(cond - uncond))


def test_balance_counts_what_lies_in_the_mask():
    """The left half of a masked picture is that of a picture which is the left half only."""
    cond, uncond, x = values()
    style = values(seed=5)[0]
    recipe = Recipe((Guidance(COND, scale=3.0), Guidance(STYLE, scale=1.0, shaping=Shaping(balance=0.7), mask="left")))
    mask = torch.zeros(1, 1, 1, 8, dtype=x.dtype)
    mask[..., :4] = 1.0
    whole, total = balance_of(recipe, {BASELINE: uncond, COND: cond, STYLE: style}, x, masks={1: mask})
    half, _ = balance_of(recipe, {p: v[..., :4] for p, v in ((BASELINE, uncond), (COND, cond), (STYLE, style))},
                         x[..., :4], masks={1: mask[..., :4]})
    assert torch.allclose(whole[1][..., :4], half[1]) and not whole[1][..., 4:].any()
    assert torch.equal(total[..., 4:], (uncond + 3.0 * (cond - uncond))[..., 4:])


def test_balance_of_nothing_is_nothing_and_beside_other_sizes_it_is_refused():
    cond, uncond, x = values()
    recipe = Recipe((Guidance(COND), Guidance(STYLE, scale=1.0, shaping=Shaping(balance=1.0))))
    for control, style in ((uncond, cond), (cond, uncond)):
        added, _ = balance_of(recipe, {BASELINE: uncond, COND: control, STYLE: style}, x)
        assert not added[1].any()
    for other in (dict(norm_limit=1.0), dict(ratio_damping=8.0)):
        with pytest.raises(ValueError, match="balance"):
            Shaping(balance=1.0, **other)
    with pytest.raises(ValueError, match="Style: balance is a share of the control guidance"):
        Recipe((Guidance(STYLE, shaping=Shaping(balance=1.0), name="Style"), Guidance(COND, scale=0.0))).check_balance()
    recipe.check_balance()


def test_a_balance_is_saved_with_its_recipe():
    recipe = Recipe((Guidance(COND), Guidance(STYLE, shaping=Shaping(balance=0.25))))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
