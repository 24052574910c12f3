"""Stack, text and grids on real tiny models, against chains and runs by hand."""

import folder_paths
import pytest
import torch
from comfy_api.latest import io

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.nodes.grids import GCFGCompare, GCFGGrid
from gcfg_pack.nodes.recipes import METADATA, GCFGGuidanceStack, GCFGGuidancesToText, GCFGTextToGuidances
from harness.sampling import STEPS, gcfg, guided
from harness.training import Clip

ROW = {"on": True, "scale": 2.5, "start_percent": 0.0, "end_percent": 1.0}
RUN = dict(seed=5, steps=STEPS, concept_scale=1.5, control_scale=2.5, sampler_name="euler", scheduler="karras",
           denoise=1.0)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Previews go where the test may write."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def stack(*rows, dynamic, chain=()):
    """The chain of a stack, as a newer host calls it (dynamic) or an older one."""
    values = {f"{key}_{n}": value for n, row in enumerate(rows, 1) for key, value in (ROW | row).items()}
    if dynamic:
        return GCFGGuidanceStack.execute({"guidances": str(len(rows)), **values}, guidance=chain).args[0]
    values = {f"guidances.{key}": value for key, value in values.items()}  # a workflow names only the rows that it uses
    return GCFGGuidanceStack.execute(str(len(rows)), guidance=chain, **values).args[0]


# --- the stack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_stack_is_the_chain_of_its_rows(tiny, base, concept, prompts, dynamic):
    positive, negative = prompts
    chain = (Link(conditioning=tiny.conditioning(4), scale=0.5),)
    made = stack({"conditioning": positive}, {"model": concept, "scale": 1.5, "end_percent": 0.5},
                 {"conditioning": tiny.conditioning(9), "on": False}, dynamic=dynamic, chain=chain)
    by_hand = (*chain, Link(conditioning=positive, scale=2.5), Link(model=concept, scale=1.5, end=0.5))
    assert len(made) == 3
    assert torch.equal(guided(Guider(base, negative, made), tiny.latent()),
                       guided(Guider(base, negative, by_hand), tiny.latent()))


def test_what_a_stack_refuses(tiny, prompts):
    with pytest.raises(ValueError, match="Guidance 2 of the stack has neither .* switch on_2 off"):
        stack({"conditioning": prompts[0]}, {}, dynamic=True)
    with pytest.raises(ValueError, match="start_percent_1 0.8 lies after end_percent_1 0.2"):
        stack({"conditioning": prompts[0], "start_percent": 0.8, "end_percent": 0.2}, dynamic=True)


def test_both_forms_of_the_stack_have_the_same_names():
    """A workflow saved on one host runs on the other."""
    (first, *others) = GCFGGuidanceStack.GET_SCHEMA().inputs[:-1]
    assert first.id == "guidances"
    if hasattr(io, "DynamicCombo"):
        names = [f"guidances.{entry.id}" for entry in first.options[-1].inputs]
    else:
        names = [entry.id for entry in others]
    assert len(names) == 8 * 6 and names[:2] == ["guidances.conditioning_1", "guidances.model_1"]
    assert names[-1] == "guidances.end_percent_8"


# --- text -----------------------------------------------------------------------------------------------------------


def test_a_line_is_the_chain_by_hand(tiny, base, prompts):
    clip, (_, negative) = Clip(), prompts
    (made,) = GCFGTextToGuidances.execute(clip, "a cat AND a wizard :0.5 AND_NOT blurry :0.25 [0-0.5]", 6.0).args
    cat, wizard, blurry = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", "a wizard", "blurry"))
    by_hand = (Link(conditioning=cat, scale=6.0), Link(conditioning=wizard, scale=3.0),
               Link(conditioning=blurry, scale=-1.5, end=0.5))
    assert torch.equal(guided(Guider(base, negative, made), tiny.latent()),
                       guided(Guider(base, negative, by_hand), tiny.latent()))


def test_text_there_and_back_and_in_the_metadata(monkeypatch):
    line = "a cat AND_NOT blurry :0.25 [0-0.5] AND_PERP fog :-0.5"
    (made,) = GCFGTextToGuidances.execute(Clip(), line, 8.0).args
    pictures = torch.rand(1, 8, 8, 3)

    class Hidden:
        extra_pnginfo = {"workflow": {}}
    monkeypatch.setattr(GCFGGuidancesToText, "hidden", Hidden, raising=False)
    text, passed = GCFGGuidancesToText.execute(made, 8.0, pictures).args
    assert text == line and passed is pictures
    assert Hidden.extra_pnginfo == {"workflow": {}, METADATA: {"text": line, "scale": 8.0}}


def test_a_line_that_cannot_be_read():
    with pytest.raises(ValueError, match="no prompt after AND"):
        GCFGTextToGuidances.execute(Clip(), "a cat AND", 6.0)


# --- the grid -------------------------------------------------------------------------------------------------------


class Vae:
    """Three of the latent's channels, twice the size."""

    def decode(self, samples):
        return samples[:, :3].movedim(1, -1).repeat_interleave(2, 1).repeat_interleave(2, 2).sigmoid()


def grid(model, prompts, tiny, row, column, **options):
    """The cells' latents; an axis is (kind, values) or (kind, values, guidance)."""
    axes = {f"{name}_{key}": value for name, axis in (("row", row), ("column", column))
            for key, value in zip(("axis", "values", "guidance"), (*axis, "Concept"), strict=False)}
    return GCFGGrid.execute(model, *prompts, tiny.latent(), **RUN | {"concept_model": None} | options, **axes).args


def test_cells_of_a_grid_equal_single_runs(tiny, base, concept, prompts):
    positive, negative = prompts
    style = tiny.conditioning(7)
    chain = (Link(conditioning=style, scale=0.3, name="Style"),)
    cells = grid(base, prompts, tiny, ("scale", "0.3, 1", "Style"), ("window", "0-1, 0-0.5"), concept_model=concept,
                 guidance=chain)[0]["samples"]
    for cell, (scale, end) in zip(cells, ((a, b) for a in (0.3, 1.0) for b in (1.0, 0.5)), strict=True):
        links = (Link(model=concept, scale=1.5, end=end, name="Concept"), Link(conditioning=style, scale=scale))
        alone = gcfg(base, positive, negative, tiny.latent(), links=links)
        assert torch.equal(cell, alone[0])


@pytest.mark.parametrize(("kind", "values", "name"), [
    ("sampler", ("euler", "heun"), "sampler"), ("scheduler", ("karras", "normal"), "scheduler"),
    ("steps", (4, 2), "steps"), ("seed", (5, 9), "seed"), ("control scale", (1.0, 3.0), "control_scale")])
def test_axes_of_the_sampler(tiny, base, prompts, kind, values, name):
    cells = grid(base, prompts, tiny, ("scale", "0", "Style"), (kind, ", ".join(map(str, values))),
                 guidance=(Link(conditioning=tiny.conditioning(7), name="Style"),))[0]["samples"]
    alone = [gcfg(base, *prompts, tiny.latent(), **{name: value})[0] for value in values]
    assert not torch.equal(*alone)
    assert len(cells) == 2 and all(torch.equal(a, b) for a, b in zip(cells, alone, strict=True))


def test_axis_of_models_and_references(tiny, base, concept, prompts):
    cells = grid(base, prompts, tiny, ("model", "model, other_model"), ("seed", "5"), other_model=concept)[0]["samples"]
    assert torch.equal(cells[1], gcfg(concept, *prompts, tiny.latent())[0])
    chain = (Link(conditioning=tiny.conditioning(7), scale=0.3, name="Style"),)
    cells = grid(base, prompts, tiny, ("reference", "unconditional, previous guidance", "Style"), ("seed", "5"),
                 guidance=chain)[0]["samples"]
    previous = Link(conditioning=tiny.conditioning(7), scale=0.3, reference="previous guidance")
    assert torch.equal(cells[1], gcfg(base, *prompts, tiny.latent(), links=[previous])[0])
    assert not torch.equal(cells[0], cells[1])


@pytest.mark.parametrize(("row", "message"), [
    (("scale", "1, two"), "values of the axis 'scale' must be numbers"), (("window", "0.8-0.2"), "must be windows"),
    (("sampler", "eular"), "must be names of samplers"), (("seed", ""), "must be whole numbers"),
    (("scale", "1", "Nobody"), "no guidance named 'Nobody'; there are Style"),
    (("model", "other_model"), "needs the input 'other_model'")])
def test_what_a_grid_refuses(tiny, base, prompts, row, message):
    chain = (Link(conditioning=tiny.conditioning(7), scale=0.3, name="Style"),)
    with pytest.raises(ValueError, match=message):
        grid(base, prompts, tiny, row, ("seed", "1"), guidance=chain)


# --- the compare view -----------------------------------------------------------------------------------------------


def test_base_concept_and_all_side_by_side(tiny, base, concept, prompts):
    chain = (Link(conditioning=tiny.conditioning(7), scale=0.3),)
    view, latent = GCFGCompare.execute(base, *prompts, tiny.latent(), **RUN, vae=Vae(), concept_model=concept,
                                       guidance=chain).args
    alone = (gcfg(base, *prompts, tiny.latent()),
             gcfg(base, *prompts, tiny.latent(), concept, 1.5, 0.0),
             gcfg(base, *prompts, tiny.latent(), concept, 1.5, links=chain))
    assert torch.equal(latent["samples"], torch.cat(alone))
    assert view.shape[0] == 1 and view.shape[2] > 3 * 16


def test_there_must_be_something_to_compare(tiny, base, prompts):
    with pytest.raises(ValueError, match="nothing to compare"):
        GCFGCompare.execute(base, *prompts, tiny.latent(), **RUN, vae=Vae())
