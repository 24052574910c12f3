"""A run goes on under other circumstances: another GPU, another place, other pictures, another target."""

import itertools
import logging
import shutil

import pytest
import torch

from gcfg.training.data import batches, dataset, index
from gcfg.training.memory import PRESETS
from gcfg.training.run import continuation, state
from gcfg.training.run.task import Watch
from gcfg.training.settings import Settings, SettingsError
from gcfg.training.weights.schedule import Schedule

from .conftest import Network, draw_pictures, encode
from .test_loop import StopAfter


class Listening(Watch):
    def __init__(self):
        self.heard = []

    def tell(self, text):
        self.heard.append(text)


@pytest.mark.parametrize("before, after", itertools.permutations(PRESETS, 2))
def test_another_memory_preset_goes_on_with_optimizer_and_precision(make, before, after):
    first = make("run", StopAfter(3), network=Network(dtype=precision(before)), memory=before)
    first.run()
    again = make("run", network=Network(dtype=precision(before)), memory=after)
    assert again.step == 3 and (again.plan.optimizer, again.plan.precision) == (
        first.plan.optimizer, first.plan.precision)
    again.run()
    assert state.latest(again.folder.states).step == 8


def precision(preset):
    """Type of the weights that a run which this preset began has, with every other preset too."""
    return getattr(torch, PRESETS[preset].precision)


def test_another_optimizer_by_name_is_refused(make):
    make("run", StopAfter(1), optimizer="adamw").run()
    make("run", StopAfter(2), optimizer="auto").run()
    with pytest.raises(SettingsError, match="trained with optimizer 'adamw', .* set optimizer to auto"):
        make("run", optimizer="adafactor")


def test_a_moved_run_folder_holds_no_absolute_path_and_goes_on(make, tmp_path):
    run = make("run", StopAfter(3), folder=str(tmp_path / "pictures"), checkpoint=str(tmp_path / "base.safetensors"),
               output=str(tmp_path / "runs"))
    run.run()
    text = run.folder.config.read_text()
    assert str(tmp_path) not in text and 'folder = "../../pictures"' in text and 'output = ""' in text
    shutil.move(tmp_path / "runs" / "run", tmp_path / "runs" / "moved")
    moved = make("moved")
    assert moved.step == 3


def test_a_checkpoint_that_was_filled_in_stays(make):
    run = make("run", StopAfter(1))
    run.run()
    run.folder.config.write_text(run.folder.config.read_text().replace('checkpoint = ""', 'checkpoint = "a.ckpt"'))
    make("run", StopAfter(2)).run()
    assert run.folder.settings().checkpoint == "a.ckpt"


def test_added_pictures_are_said_and_held_out_ones_stay_held_out(make, pictures):
    draw_pictures(pictures, 30)
    run = make("run", StopAfter(3), held_out=3)
    run.run()
    before = {latent.content for latent in run.held_out}
    assert len(before) == 3
    for k in range(12):
        draw_pictures(pictures / f"more_{k}", 1, seed=50 + k)
    watch = Listening()
    again = make("run", watch, held_out=3)
    assert {latent.content for latent in again.held_out} == before
    assert not before & {latent.content for latent in again.loader.latents}
    assert any("12 new ones, 0 gone" in text for text in watch.heard)
    again.run()


def test_held_out_are_chosen_by_content(tmp_path):
    latents = [dataset.Latent(f"{k}.png", "", (4, 8, 8), content=f"content {k}") for k in range(40)]
    training, held_out = dataset.split(latents, 16, 0)
    renamed = [dataset.Latent(f"z{x.file}", "", x.shape, content=x.content) for x in reversed(latents)]
    assert {x.content for x in dataset.split(renamed, 16, 0)[1]} == {x.content for x in held_out}
    copies = [*latents, *(dataset.Latent(f"copy_{x.file}", "", x.shape, content=x.content) for x in latents)]
    training, held_out = dataset.split(copies, 16, 0)
    assert not {x.content for x in training} & {x.content for x in held_out}


@pytest.mark.parametrize("name", continuation.INPUTS)
def test_changed_inputs_are_refused_in_a_sentence(name):
    one = {key: continuation.sketch({"w": torch.randn(100, 10)}) for key in continuation.INPUTS}
    continuation.check_inputs(one, one, "discs")
    with pytest.raises(ValueError, match=f"'discs' was begun on another {continuation.INPUTS[name][:9]}.*run_name"):
        continuation.check_inputs(one, one | {name: [9.0]}, "discs")


def test_a_sketch_survives_another_type_but_not_other_weights():
    torch.manual_seed(0)
    weights = {f"layer {k}": torch.randn(64, 64) for k in range(30)}
    for dtype in (torch.float16, torch.bfloat16):
        continuation.check_inputs({"base": continuation.sketch(weights)},
                                  {"base": continuation.sketch({k: v.to(dtype) for k, v in weights.items()})}, "a")
    tuned = {k: v + 0.02 * torch.randn(64, 64) for k, v in weights.items()}
    with pytest.raises(ValueError, match="another base model"):
        continuation.check_inputs({"base": continuation.sketch(weights)}, {"base": continuation.sketch(tuned)}, "a")


def test_a_later_target_under_cosine_does_not_jump(make):
    short, long = (Settings(schedule="cosine", target_steps=steps) for steps in (100, 200))
    was = Schedule.of(short)
    now = Schedule.of(long).going_on(was.notes(), 60)
    assert now.at(60) == pytest.approx(was.at(60)) and now.at(200) == pytest.approx(0.0)
    assert all(now.at(step) >= now.at(step + 1) for step in range(60, 200))
    assert Schedule.of(short).going_on(was.notes(), 60) == was
    with pytest.raises(SettingsError, match="fallen to 0 at step 100.*schedule to constant"):
        Schedule.of(long).going_on(was.notes(), 100)
    make("run", schedule="cosine", target_steps=4).run()
    with pytest.raises(SettingsError, match="fallen to 0 at step 4"):
        make("run", schedule="cosine", target_steps=8)


def test_another_number_of_threads_is_said(make):
    threads = torch.get_num_threads()
    make("run", StopAfter(2)).run()
    watch = Listening()
    try:
        torch.set_num_threads(threads + 1)
        make("run", watch)
    finally:
        torch.set_num_threads(threads)
    assert any(f"{threads} threads and goes on with {threads + 1}" in text for text in watch.heard)


def test_all_states_damaged_is_no_new_beginning(make):
    run = make("run", StopAfter(3))
    run.run()
    for path in state.files(run.folder.states):
        path.write_bytes(b"nothing")
    with pytest.raises(state.StateError, match="no state of this run can be read"):
        make("run")


def test_latents_that_vanish_cost_no_step(make, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "IN_MEMORY", 0)

    class Vanish(Watch):
        def progress(self, step, steps, loss):
            if step == 4:
                shutil.rmtree(tmp_path / "latents")
    gone = "picture_.*cannot be read.*state of step [45] is saved.*encoded anew"
    with pytest.raises(dataset.LatentsGone, match=gone):
        make("run", Vanish(), held_out=0).run()
    again = make("run", held_out=0)  # which encodes
    assert again.step in (4, 5)
    again.run()


def test_moved_pictures_are_not_encoded_again(tmp_path):
    folder, calls = draw_pictures(tmp_path / "p", 4), []

    def counting(batch):
        calls.append(1)
        return encode(batch)
    first = dataset.cache(dataset.Source(str(folder), 64), tmp_path / "c", "vae", counting)
    shutil.move(folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "picture_00.png").touch()
    again = dataset.cache(dataset.Source(str(tmp_path / "elsewhere"), 64), tmp_path / "c", "vae", counting)
    assert len(calls) == 8 and again == first


def test_latents_that_nobody_uses_are_deleted(tmp_path, monkeypatch):
    folder = draw_pictures(tmp_path / "p", 3)
    dataset.cache(dataset.Source(str(folder), 64), tmp_path / "c", "vae", encode)
    (folder / "picture_00.png").unlink()
    now = index.time.time()
    monkeypatch.setattr(index.time, "time", lambda: now + index.UNUSED - 100)
    dataset.cache(dataset.Source(str(folder), 64), tmp_path / "c", "vae", encode)
    assert len(list((tmp_path / "c").rglob("*.npy"))) == 3
    import os
    for path in (tmp_path / "c").rglob("*.npy"):
        os.utime(path, (now - 2 * index.UNUSED,) * 2)
    dataset.cache(dataset.Source(str(folder), 64), tmp_path / "c", "vae", encode)
    assert len(list((tmp_path / "c").rglob("*.npy"))) == 2


def test_space_is_said_and_checked_before_the_first_step(make, monkeypatch):
    watch = Listening()
    make("said", watch, target_steps=1).run()
    assert "a save takes" in watch.heard[0] and "are free" in watch.heard[0]
    run = make("full")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(OSError, match="a save takes .* but only 0.0 MB are free .* lower keep"):
        run.run()
    assert state.files(run.folder.states) == [] and run.step == 0


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_space_that_is_said_is_about_right(make, optimizer, precision):
    run = make("run", target_steps=2, optimizer=optimizer, precision=precision)
    said = run._size()
    run.run()
    written = state.files(run.folder.states)[-1].stat().st_size
    assert written - 20_000 <= said <= written + 20_000


def test_matplotlib_may_fail_in_any_way(make, monkeypatch, caplog):
    def broken(history):
        raise AttributeError("module 'numpy' has no attribute 'Inf'")
    monkeypatch.setattr("gcfg.training.run.folder.plot", broken)
    with caplog.at_level(logging.WARNING):
        make("run", target_steps=4).run()
    assert "loss.png could not be drawn" in caplog.text
