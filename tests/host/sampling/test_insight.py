"""The inspector and the scale grid on real tiny models, against numbers worked out by hand and single runs."""

import builtins
import csv
import io

import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import pytest
import torch
from comfy_execution.graph import ExecutionBlocker

from gcfg_pack.gcfg.guidance import Performance
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.gcfg.host.sampling.tracing import trace_of
from gcfg_pack.nodes.grids import GCFGScaleGrid
from gcfg_pack.nodes.guidance import GCFGGuidance
from gcfg_pack.nodes.insight import GCFGInspector
from harness.sampling import counted, gcfg, guided, stock

STEPS = 4


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Previews go where the test may write."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.fixture
def prompts(tiny):
    return tiny.conditioning(1), tiny.conditioning(2), tiny.conditioning(3)


def inspect(**source):
    """The plot and the lines of the CSV."""
    image, text = GCFGInspector.execute({"samples": torch.zeros(1)}, **source).args
    return image, list(csv.DictReader(io.StringIO(text)))


def denoised(tiny, model, conditioning, negative):
    """A model's denoised prediction at the first noise level, as latent: one Euler step to zero gives it."""
    return stock(model, conditioning, negative, tiny.latent(), cfg=1.0, steps=1)


# --- the inspector ------------------------------------------------------------------------------------------------


def test_csv_equals_hand_computed_numbers(tiny, base, concept, prompts):
    positive, negative, style = prompts
    guider = Guider(base, negative, [Link(conditioning=positive, scale=2.5, name="Control"),
                                     Link(model=concept, scale=1.5, name="Concept"),
                                     Link(conditioning=style, scale=-0.7)])
    guided(guider, tiny.latent(), steps=1)
    _, lines = inspect(guider=guider)
    d0, dp, ds = (denoised(tiny, base, c, negative) for c in (negative, positive, style))
    dc = denoised(tiny, concept, negative, negative)
    parts = {"Control": 2.5 * (dp - d0), "Concept": 1.5 * (dc - d0), "Guidance 3": -0.7 * (ds - d0)}
    assert [line["guidance"] for line in lines] == list(parts)
    for line in lines:
        part = parts[line["guidance"]]
        assert float(line["relative_norm"]) == pytest.approx(float(part.norm() / d0.norm()), rel=1e-3)
        for name, other in parts.items():
            expected = float(torch.cosine_similarity(part.flatten(), other.flatten(), dim=0))
            assert float(line[f"cosine to {name}"]) == pytest.approx(expected, abs=1e-3)
    assert [line["scale"] for line in lines] == ["2.5", "1.5", "-0.7"]
    assert float(lines[0]["sigma"]) == pytest.approx(float(base.get_model_object("model_sampling").sigma_max), rel=1e-4)
    assert float(lines[0]["progress"]) == pytest.approx(0.0, abs=1e-3)


def test_passes_equal_the_counted_ones(tiny, base, concept, prompts):
    positive, negative, style = prompts
    patched = apply(base, [Link(model=concept, scale=1.5, end=0.5, name="Concept"), Link(conditioning=style)])
    with counted(base, concept) as calls:
        stock(patched, positive, negative, tiny.latent(), steps=STEPS)
    _, lines = inspect(model=patched)
    assert len(lines) == 3 * STEPS and lines[0]["guidance"] == "positive (cfg)"
    firsts = lines[::3]
    assert sum(int(line["passes_run"]) for line in firsts) == sum(rows for _, rows in calls)
    assert all(int(line["passes_run"]) + int(line["passes_skipped"]) == 4 for line in firsts)
    assert any(line["passes_skipped"] == "1" for line in firsts)
    concept_lines = [line for line in lines if line["guidance"] == "Concept"]
    assert [line["in_window"] for line in concept_lines] == ["1" if line["scale"] == "1.5" else "0"
                                                            for line in concept_lines]
    for line, other in zip(firsts, concept_lines, strict=True):
        assert float(line["ms base"]) > 0 and bool(line["ms model of Concept"]) == (other["in_window"] == "1")


def test_reused_passes_are_counted(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    patched = apply(base, [Link(model=concept)], performance=Performance(refresh_every=2))
    with counted(base, concept) as calls:
        stock(patched, positive, negative, tiny.latent(), steps=STEPS)
    _, lines = inspect(model=patched)
    assert sum(int(line["passes_run"]) for line in lines[::2]) == sum(rows for _, rows in calls)
    assert [line["passes_reused"] for line in lines[::2]] == ["0", "2"] * (STEPS // 2)


def test_plot_is_a_picture_and_shown(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    patched = apply(base, [Link(model=concept)])
    stock(patched, positive, negative, tiny.latent())
    result = GCFGInspector.execute(tiny.latent(), model=patched)
    image = result.args[0]
    assert image.shape[0] == 1 and image.shape[3] == 3 and 600 <= image.shape[1] <= 1400 and image.max() <= 1.0
    assert len(result.ui.as_dict()["images"]) == 1


def test_clones_share_the_trace_and_runs_empty_it(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    patched = apply(base, [Link(model=concept)])
    stock(patched.clone(), positive, negative, tiny.latent(), steps=2)
    assert len(trace_of(patched).calls) == 2
    stock(patched, positive, negative, tiny.latent(), steps=3)
    assert len(trace_of(patched).calls) == 3


def test_control_switched_off_is_not_listed(tiny, base, concept, prompts):
    _, negative, _ = prompts
    guider = Guider(base, negative, [Link(model=concept, name="Concept")])
    guided(guider, tiny.latent())
    _, lines = inspect(guider=guider)
    assert {line["guidance"] for line in lines} == {"Concept"}


def test_what_the_inspector_refuses(tiny, base, concept, prompts):
    _, negative, _ = prompts
    guider = Guider(base, negative, [Link(model=concept)])
    with pytest.raises(ValueError, match="Nothing has been sampled"):
        inspect(guider=guider)
    with pytest.raises(ValueError, match="carries no guidances"):
        inspect(model=base)
    for sockets in ({}, {"guider": guider, "model": base}):
        with pytest.raises(ValueError, match="either a guider or a model"):
            inspect(**sockets)


def test_without_matplotlib_the_numbers_are_there_and_a_note(tiny, base, concept, prompts, monkeypatch):
    positive, negative, _ = prompts
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    patched = apply(base, [Link(model=concept)])
    stock(patched, positive, negative, tiny.latent())
    result = GCFGInspector.execute(tiny.latent(), model=patched)
    blocked, text = result.args
    assert isinstance(blocked, ExecutionBlocker) and "pip install matplotlib" in blocked.message
    assert text == trace_of(patched).csv() and text.count("\n") > STEPS
    assert "pip install matplotlib" in result.ui.as_dict()["text"][0]


def test_a_guidance_has_the_name_that_it_is_given(tiny, prompts):
    link = GCFGGuidance.execute(1.0, 0.0, 1.0, "unconditional", name=" Style ").args[0][0]
    assert link.name == "Style"


# --- the scale grid -----------------------------------------------------------------------------------------------


class Vae:
    """Three of the latent's channels, twice the size."""

    def decode(self, samples):
        return samples[:, :3].movedim(1, -1).repeat_interleave(2, 1).repeat_interleave(2, 2).sigmoid()


def scale_grid(model, positive, negative, latent, rows="0, 1.5", columns="1, 2.5, 0", **options):
    return GCFGScaleGrid.execute(model, positive, negative, latent, 5, STEPS, rows, columns, "euler", "karras", 1.0,
                                 **options)


def test_cells_equal_single_runs(tiny, base, concept, prompts):
    positive, negative, style = prompts
    chain = (Link(conditioning=style, scale=0.3),)
    latent = scale_grid(base, positive, negative, tiny.latent(batch=2), concept_model=concept, guidance=chain).args[0]
    assert latent["samples"].shape[0] == 12
    for cell, (a, b) in enumerate((a, b) for a in (0, 1.5) for b in (1, 2.5, 0)):
        alone = gcfg(base, positive, negative, tiny.latent(batch=2), concept, a, b, links=chain)
        assert torch.equal(latent["samples"][2 * cell:2 * cell + 2], alone)


def test_one_progress_bar_with_previews(tiny, base, concept, prompts, monkeypatch):
    positive, negative, _ = prompts
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK",
                        lambda value, total, preview, **_: seen.append((value, total, preview)))
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    scale_grid(base, positive, negative, tiny.latent(), concept_model=concept)
    assert [(value, total) for value, total, _ in seen] == [(i, 6 * STEPS) for i in range(1, 6 * STEPS + 1)]
    assert all(preview is not None for _, _, preview in seen)


@pytest.mark.parametrize("method", ["Latent2RGB", "NoPreviews"])
def test_the_finished_grid_is_the_last_preview(tiny, base, prompts, monkeypatch, method):
    """Frontends go on showing the last preview: without previews none is sent, and they show the result."""
    positive, negative, _ = prompts
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: seen.append(preview))
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod[method])
    image = scale_grid(base, positive, negative, tiny.latent(), "0", "1, 2", vae=Vae()).args[1]
    shown = [preview for preview in seen if preview is not None]
    assert bool(shown) == (method == "Latent2RGB")
    if shown:
        assert shown[-1][1].size == (image.shape[2], image.shape[1]) and shown[-1][2] >= max(shown[-1][1].size)


def test_models_share_batches_in_a_grid_as_in_a_single_run(tiny, base, prompts):
    """The wrapper that reports progress must not tell clones of one model apart."""
    positive, negative, _ = prompts
    tuned = comfy.sd.load_lora_for_models(base, None, tiny.lora(base, 3), 1.0, 0.0)[0]
    with counted(base) as calls:
        scale_grid(base, positive, negative, tiny.latent(), "1.5", "2.5", concept_model=tuned)
    assert calls == [(0, 3)] * STEPS


def test_labelled_picture(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    result = scale_grid(base, positive, negative, tiny.latent(batch=2), concept_model=concept, vae=Vae())
    latent, image = result.args
    assert image.shape[0] == 2 and image.shape[1] > 2 * 16 and image.shape[2] > 3 * 16 and image.shape[3] == 3
    last = Vae().decode(latent["samples"])[-1]
    assert torch.allclose(image[1, -18:-2, -18:-2], last, atol=1 / 255)
    assert len(result.ui.as_dict()["images"]) == 2


def test_without_a_vae_the_grid_output_is_blocked(tiny, base, prompts):
    positive, negative, _ = prompts
    image = scale_grid(base, positive, negative, tiny.latent(), "1", "2.5").args[1]
    assert isinstance(image, ExecutionBlocker) and "vae" in image.message


@pytest.mark.parametrize(("rows", "columns", "message"), [
    ("0, one", "1", "concept_scales must be numbers"), ("1", "", "control_scales must be numbers"),
    ("0, 1", "1", "nothing for concept_scales to scale"), ("1", "nan", "control_scales must be numbers"),
    ("1", ",".join(map(str, range(401))), "at most 400")])
def test_what_the_grid_refuses(tiny, base, prompts, rows, columns, message):
    positive, negative, _ = prompts
    with pytest.raises(ValueError, match=message):
        scale_grid(base, positive, negative, tiny.latent(), rows, columns)
