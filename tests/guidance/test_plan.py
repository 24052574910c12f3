"""What a step must evaluate, what a recipe is as data, and scales over sampling progress."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcfg.guidance import Guidance, Prediction, Progress, Recipe, Schedule, Shaping, plan
from gcfg.guidance.plan import in_zero_init
from gcfg.guidance.schedule import parse_points

BASELINE, CONCEPT, CONTROL = Prediction(), Prediction("concept"), Prediction("base", "positive")


def clock():
    """Noise levels falling linearly from 10, with "infinity" at progress 0 as hosts answer it."""
    return Progress(lambda p: 1e9 if p <= 0 else 10 * (1 - p), 10.0)


def test_what_has_no_effect_is_not_predicted():
    recipe = Recipe((Guidance(CONCEPT, scale=0.0), Guidance(CONTROL, CONTROL, scale=3.0),
                     Guidance(CONCEPT, end=0.2), Guidance(CONTROL, scale=2.0)))
    step = plan(recipe, sigma=5.0, progress=clock())
    assert [t.index for t in step.terms] == [3]
    assert step.all_predictions == (BASELINE, CONTROL)


def test_equal_predictions_are_listed_once():
    recipe = Recipe((Guidance(CONCEPT), Guidance(CONCEPT, CONTROL), Guidance(CONTROL, scale=2.0)))
    assert plan(recipe, 5.0, clock()).all_predictions == (BASELINE, CONCEPT, CONTROL)


def test_the_baseline_is_left_out_only_where_it_cancels():
    cancelling = Recipe((Guidance(CONCEPT, scale=0.5), Guidance(CONTROL, scale=0.5)))
    assert plan(cancelling, 5.0, clock()).all_predictions == (CONCEPT, CONTROL)
    assert BASELINE in plan(cancelling, 5.0, clock(), added=True).predictions
    for kept in (Guidance(CONTROL, scale=0.6), Guidance(CONTROL, scale=0.5, mask="left"),
                 Guidance(CONTROL, scale=0.5, shaping=Shaping(norm_limit=1.0))):
        assert BASELINE in plan(Recipe((Guidance(CONCEPT, scale=0.5), kept)), 5.0, clock()).all_predictions


def test_absent_predictions_take_their_guidances_along():
    recipe = Recipe((Guidance(CONCEPT), Guidance(CONTROL, CONCEPT), Guidance(CONTROL)))
    assert [t.index for t in plan(recipe, 5.0, clock(), absent={CONCEPT}).terms] == [2]


def test_windows_include_both_ends():
    recipe = Recipe((Guidance(CONCEPT, start=0.25, end=0.75),))
    at = [bool(plan(recipe, sigma, clock()).terms) for sigma in (7.51, 7.5, 5.0, 2.5, 2.49)]
    assert at == [False, True, True, True, False]


def test_zero_init_covers_the_first_steps():
    recipe = Recipe((Guidance(CONCEPT, shaping=Shaping(zero_init_steps=2)),))
    sigmas = [10.0, 7.0, 4.0, 0.0]
    assert [in_zero_init(recipe, sigma, sigmas) for sigma in sigmas] == [True, True, False, False]
    assert not in_zero_init(Recipe((Guidance(CONCEPT),)), 10.0, sigmas)


def test_progress_inverts_the_noise_schedule():
    progress = clock()
    assert [progress(s) for s in (1e12, 10.0, 0.0, -1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert progress(2.5) == pytest.approx(0.75, abs=1e-9)


def test_recipes_are_data():
    recipe = Recipe((Guidance(CONCEPT, scale=-1.5, schedule=Schedule("points", points=((0, 1), (0.4, 2))),
                              shaping=Shaping(parallel=0.0), mask="face", name="faces"),
                     Guidance(CONTROL, CONCEPT, start=0.1)), Prediction("weak"))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert hash(Recipe.from_dict(recipe.to_dict())) == hash(recipe)
    renamed = recipe.renamed({"concept": "faces"}, {"positive": "a"})
    assert renamed.guidances[1].prediction == Prediction("base", "a")
    assert renamed.guidances[1].reference == Prediction("faces")
    with pytest.raises(TypeError, match="strength"):
        Recipe.from_dict({"guidances": [{"prediction": {}, "strength": 2}]})


@given(st.sampled_from(["linear", "cosine", "power"]), st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 9))
def test_schedules_lead_from_start_to_end(kind, start, end, exponent):
    schedule = Schedule(kind, start, end, exponent)
    assert schedule(0.0) == pytest.approx(start) and schedule(1.0) == pytest.approx(end)
    low, high = sorted((start, end))
    assert all(low - 1e-9 <= schedule(p / 10) <= high + 1e-9 for p in range(11))


def test_schedule_values():
    assert Schedule()(0.3) == 1.0
    assert Schedule("linear", 1.0, 3.0)(0.25) == 1.5
    assert Schedule("cosine", 0.0, 1.0)(0.5) == pytest.approx(0.5)
    assert Schedule("power", 0.0, 1.0, 3.0)(0.5) == 0.125
    points = Schedule("points", points=parse_points("0.5: 2; 0.25: 1\n1: 0"))
    assert [points(p) for p in (0.0, 0.25, 0.375, 0.5, 0.75, 1.0)] == [1.0, 1.0, 1.5, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [dict(kind="spline"), dict(kind="points"), dict(kind="power", exponent=0.0),
                                 dict(start_value=float("nan")), dict(kind="points", points=((1.5, 1.0),))])
def test_bad_schedules(bad):
    with pytest.raises(ValueError):
        Schedule(**bad)


def test_bad_points():
    with pytest.raises(ValueError, match="'0.5' is no schedule point; write"):
        parse_points("0: 1, 0.5")
