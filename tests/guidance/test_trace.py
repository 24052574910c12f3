"""What a trace records equals the same numbers worked out by hand; what it costs; what it draws."""

import builtins
import csv
import io
import math
import time

import numpy as np
import pytest
import torch

from gcfg.guidance import Guidance, Prediction, Progress, Recipe, combine, plan
from gcfg.guidance.trace import Trace, gram, mean
from gcfg.guidance.trace_plot import plot, summary

BASELINE, CONCEPT, CONTROL = Prediction(), Prediction("concept"), Prediction("base", "positive")
PROGRESS = Progress(lambda p: 10 * (1 - p), 10.0)
SIGMAS = (9.0, 6.0, 3.0, 0.5)
GUIDANCES = (Guidance(CONTROL, scale=2.5, name="control"), Guidance(CONCEPT, scale=-2.0, end=0.5, name="concept"))


def predictions(sigma, batch=2):
    generator = torch.Generator().manual_seed(int(sigma * 10))
    return {p: torch.randn((batch, 4, 8, 8), generator=generator) for p in (BASELINE, CONCEPT, CONTROL)}


def traced(guidances=GUIDANCES, sigmas=SIGMAS):
    """A trace of the recipe on random predictions, as a sampling loop leaves it."""
    trace, recipe = Trace(), Recipe(tuple(guidances))
    trace.begin(dict(enumerate(guidances)), PROGRESS, predictions=3, models={"base": "base model"})
    for sigma in sigmas:
        known, added = predictions(sigma), {}
        step = plan(recipe, sigma, PROGRESS)
        with trace.timed("base", torch.device("cpu")):
            time.sleep(0.001)
        combine(step, known, torch.zeros(2, 4, 8, 8), sigma,
                observe=lambda term, value, added=added: added.update({term.index: (term.scale, value)}))
        trace.record(sigma, known[BASELINE], added, run=len(step.all_predictions))
    return trace


def rows(trace):
    return list(csv.DictReader(io.StringIO(trace.csv())))


def test_sizes_and_cosines_equal_hand_computed_ones():
    for sigma, reading in zip(SIGMAS, traced().read(), strict=True):
        known = predictions(sigma)
        a, b = 2.5 * (known[CONTROL] - known[BASELINE]), -2.0 * (known[CONCEPT] - known[BASELINE])
        size = (a.flatten(1).norm(dim=1) / known[BASELINE].flatten(1).norm(dim=1)).mean()
        assert reading.sizes[0] == pytest.approx(float(size), rel=1e-5)
        cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
        if sigma >= 5.0:
            assert reading.cosines[0][1] == pytest.approx(float(cosine), abs=1e-5)
            assert reading.cosines[0][1] == reading.cosines[1][0]
        assert reading.cosines[0][0] == pytest.approx(1.0)


def test_outside_its_window_a_guidance_has_scale_zero_and_no_size():
    readings = traced().read()
    assert [r.scales for r in readings] == [[2.5, -2.0]] * 2 + [[2.5, 0.0]] * 2
    assert [r.inside for r in readings] == [[True, True]] * 2 + [[True, False]] * 2
    assert [math.isnan(r.sizes[1]) for r in readings] == [False, False, True, True]
    assert [(r.run, r.skipped) for r in readings] == [(3, 0)] * 2 + [(2, 1)] * 2
    assert [r.progress for r in readings] == pytest.approx([0.1, 0.4, 0.7, 0.95])


def test_csv_has_a_line_a_call_and_guidance():
    lines = rows(traced())
    assert len(lines) == len(SIGMAS) * 2
    assert [line["guidance"] for line in lines[:2]] == ["control", "concept"]
    assert [line["sigma"] for line in lines[::2]] == ["9", "6", "3", "0.5"]
    assert lines[0]["passes_run"] == "3" and lines[-1]["passes_skipped"] == "1"
    assert float(lines[0]["ms base model"]) >= 1.0
    assert lines[-1]["relative_norm"] == lines[-1]["cosine to control"] == "" and lines[-1]["in_window"] == "0"


def test_table_has_a_line_a_guidance():
    table = traced().table().splitlines()
    assert table[2].startswith("| control | 4 | 2.5 |") and table[3].startswith("| concept | 2 | -2 |")


def test_equal_names_are_told_apart():
    trace = traced([Guidance(CONTROL, name="style"), Guidance(CONCEPT, name="style"), Guidance(CONCEPT, name="style")])
    assert trace.names == ["style", "style (2)", "style (3)"]
    assert len(rows(trace)[0]) == len(set(rows(trace)[0]))


def test_a_run_starts_by_emptying_the_trace():
    trace = traced()
    trace.begin({}, PROGRESS)
    assert trace.read() == [] and trace.names == [] and trace.csv().count("\n") == 1


def test_without_a_baseline_sizes_are_unknown():
    trace = Trace()
    trace.begin({0: GUIDANCES[0]}, PROGRESS)
    trace.record(5.0, None, {0: (2.5, torch.ones(1, 4))}, run=1)
    trace.record(4.0, torch.zeros(1, 4), {0: (2.5, torch.zeros(1, 4))}, run=1)
    assert all(math.isnan(r.sizes[0]) for r in trace.read())


def test_only_inner_products_are_kept():
    trace = traced()
    assert {tuple(call.gram.shape) for call in trace.calls} == {(2, 3, 3), (2, 2, 2)}
    assert all(call.gram.dtype == torch.float32 for call in trace.calls)
    half = [torch.full((1, 4, 256, 256), 300.0, dtype=torch.float16)] * 2
    assert torch.isfinite(gram(half)).all()


def test_interrupted_forward_passes_leave_no_time_behind():
    trace = Trace()
    trace.begin({}, PROGRESS)
    with pytest.raises(KeyboardInterrupt), trace.timed("base", torch.device("cpu")):
        raise KeyboardInterrupt
    trace.record(5.0, None, {})
    assert trace.read()[0].milliseconds == {}


@pytest.mark.parametrize("count", [1, 2, 6])
def test_plot_is_a_picture_with_ink(count):
    guidances = [Guidance(CONTROL if i % 2 else CONCEPT, scale=1.0 + i, name=f"guidance {i}") for i in range(count)]
    picture = plot(traced(guidances))
    height, width, channels = picture.shape
    assert picture.dtype == np.uint8 and channels == 3 and 600 <= height <= 1400 and 800 <= width <= 2000
    dark = (picture.mean(axis=2) < 64).mean()
    assert 0.7 < dark < 0.99 and picture.max() > 200


def test_plot_of_one_call_and_of_samplers_that_repeat_levels():
    assert plot(traced(sigmas=(9.0,))).any()
    assert plot(traced(sigmas=(9.0, 6.0, 6.0, 3.0, 3.0, 9.0, 0.0))).any()


def test_plot_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    trace = traced()
    with pytest.raises(RuntimeError, match="pip install matplotlib"):
        plot(trace)
    assert trace.csv() and trace.table()


def test_plot_leaves_pyplot_alone():
    import sys
    plot(traced())
    assert "matplotlib.pyplot" not in sys.modules


def test_summary_counts():
    text = summary(traced().read())
    assert text.startswith("10 predictions in 4 calls, 2 skipped\n") and "base model" in text


def test_mean_ignores_what_is_unknown():
    assert mean([1.0, math.nan, 3.0]) == 2.0 and math.isnan(mean([math.nan]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_time_a_gpu():
    trace, device = Trace(), torch.device("cuda")
    trace.begin({}, PROGRESS)
    with trace.timed("base", device):
        torch.randn(4096, 4096, device=device) @ torch.randn(4096, 4096, device=device)
    trace.record(5.0, None, {})
    assert 0.0 < trace.read()[0].milliseconds["base"] < 10_000
