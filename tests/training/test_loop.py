"""The loop: it learns, goes on exactly, and survives interruption, lack of memory and NaN."""

import csv
import math
import weakref

import pytest
import torch
from torch import nn

from gcfg.training.run import folder, loop, state
from gcfg.training.run.task import Diverged, OutOfMemory, Watch
from gcfg.training.settings import Settings, SettingsError
from gcfg.training.weights.schedule import Schedule

from .conftest import SIGMAS, Network, denoised, draw_pictures, noised


class StopAfter(Watch):
    def __init__(self, step):
        self.step, self.at, self.previews = step, -1, []

    def interrupted(self):
        return self.at >= self.step

    def progress(self, step, steps, loss):
        self.at = step

    def preview(self, step, weights):
        self.previews.append(step)


def final(run):
    return {**{f"p {n}": p.detach().clone() for n, p in run.task.parameters.items()},
            **{f"a {n}": v for n, v in run.average.values.items()},
            **{f"o {n}": v for n, v in run.optimizer.tensors().items()}, "history": run.record.table()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(-1.0), b[k].nan_to_num(-1.0)) for k in a)


def rows(run):
    return list(csv.DictReader(run.folder.table.open()))


def test_learns(make):
    run = make(target_steps=60, held_out_every=30)
    run.run()
    held_out = [float(row["held_out_loss"]) for row in rows(run) if row["held_out_loss"]]
    assert len(held_out) == 3 and held_out[-1] < 0.8 * held_out[0]
    assert [int(row["step"]) for row in rows(run)] == list(range(61))
    assert run.folder.curve.read_bytes().startswith(b"\x89PNG")
    assert state.latest(run.folder.states).step == 60


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adafactor", "precision": "bfloat16", "noise_offset": 0.1},
                                     {"ema_precision": "bfloat16"},
                                     {"min_snr": 5.0, "schedule": "cosine", "warm_up": 3, "ema": False}])
def test_interrupted_run_goes_on_to_the_bit(make, changes):
    whole = make("whole", **changes)
    whole.run()
    for stop in (2, 5):
        make("parts", StopAfter(stop), **changes).run()
    last = make("parts", **changes)
    assert last.step == 5
    last.run()
    assert equal(final(whole), final(last))
    assert whole.folder.table.read_text() == last.folder.table.read_text()


def test_killed_run_goes_on_from_the_last_save(make):
    whole = make("whole")
    whole.run()

    class Killed(Watch):
        def progress(self, step, steps, loss):
            if step == 5:
                raise SystemExit
    with pytest.raises(SystemExit):
        make("killed", Killed()).run()
    again = make("killed")
    assert again.step == 3
    again.run()
    assert equal(final(whole), final(again))
    assert whole.folder.table.read_text() == again.folder.table.read_text()


def test_finished_run_goes_on_to_a_later_target(make):
    whole, first = make("whole", target_steps=8), make("two", target_steps=4, held_out_every=4)
    whole.run()
    first.run()
    second = make("two", target_steps=8)
    second.run()
    assert equal(final(whole), final(second))


def test_settings_of_a_run_stay(make):
    make("run").run()
    with pytest.raises(SettingsError, match="seed was 0, now 4"):
        make("run", seed=4)


def test_micro_batches_do_not_change_the_result(make):
    big, small = make("big", micro_batch=4), make("small", micro_batch=1)
    big.run()
    small.run()
    assert torch.allclose(big.record.table()[:, 1].nan_to_num(), small.record.table()[:, 1].nan_to_num(), rtol=1e-4)


def test_no_graph_outlives_its_micro_batch(make):
    network = Network()
    loss, graphs = loop_loss(network), []

    def losses(x0, noise, level, pictures):
        assert all(graph() is None for graph in graphs)
        found = loss(x0, noise, level)
        graphs.append(weakref.ref(found))
        return found
    make("run", None, network, losses, micro_batch=1, held_out=0, target_steps=2).run()
    assert len(graphs) == 8


def limited(network, most):
    loss = loop_loss(network)

    def losses(x0, noise, level, pictures):
        if len(x0) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return loss(x0, noise, level)
    return losses


def loop_loss(network):
    from gcfg.training.losses.objectives import DiffusionLoss
    return DiffusionLoss(network, noised, denoised, SIGMAS)


def test_out_of_memory_halves_once_with_the_same_batch(make, caplog):
    plain = make("plain", micro_batch=2)
    plain.run()
    network = Network()
    run = make("limited", StopAfter(4), network, limited(network, 2), micro_batch=4)
    run.run()
    assert run.stepper.micro_batch == 2 and "micro-batches of 2 instead of 4" in caplog.text
    network = Network()
    again = make("limited", None, network, limited(network, 2), micro_batch=4)
    assert again.stepper.micro_batch == 2
    again.run()
    assert equal(final(plain), final(again))


def test_out_of_memory_twice_saves_and_stops_with_advice(make):
    network = Network()
    run = make("run", None, network, limited(network, 1), micro_batch=4)
    with pytest.raises(OutOfMemory, match="Choose a smaller memory preset"):
        run.run()
    assert state.latest(run.folder.states).step == 0


def test_nan_stops_at_the_last_good_state_and_names_step_and_file(make):
    network = Network()
    loss = loop_loss(network)

    def losses(x0, noise, level, pictures):
        values = loss(x0, noise, level)
        if torch.is_grad_enabled() and run.step == 5:
            values = values * torch.tensor([1.0, math.nan, 1.0, 1.0])[:len(values)]
        return values
    run = make("run", None, network, losses)
    with pytest.raises(Diverged, match=r"loss of step 6 is not finite on picture_\d\d.png.* state of step 5"):
        run.run()
    newest = state.latest(run.folder.states)
    assert newest.step == 5 and all(torch.isfinite(p).all() for p in newest.parameters.values())


def test_gradient_that_is_not_finite_stops_too(make):
    network = Network()
    loss = loop_loss(network)

    def losses(x0, noise, level, pictures):
        return loss(x0, noise, level) + (network.level.bias * 0).sqrt().sum()
    with pytest.raises(Diverged, match="the gradient of step 1 is not finite"):
        make("run", None, network, losses).run()


def test_full_disk_says_where_the_run_goes_on(make, monkeypatch):
    run = make("run", StopAfter(4), save_every=3)
    original, calls = state.save, []

    def full(*args):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return original(*args)
    monkeypatch.setattr(loop.state, "save", full)
    with pytest.raises(OSError, match="step 4 could not be written.*from step 3"):
        run.run()
    assert state.latest(run.folder.states).step == 3


def test_fused_backward_learns_and_goes_on(make):
    changes = {"fused_backward": True, "optimizer": "adafactor", "precision": "bfloat16", "target_steps": 6}
    whole = make("whole", **changes)
    whole.run()
    make("parts", StopAfter(4), **changes).run()
    last = make("parts", **changes)
    last.run()
    assert equal(final(whole), final(last))


def test_fused_backward_updates_each_weight_once_a_step(make, tmp_path):
    draw_pictures(tmp_path / "pictures", 9, 192, wide=3)
    run = make("run", fused_backward=True, optimizer="adafactor", target_steps=6, resolution=192)
    assert len({latent.shape for latent in run.loader.latents}) == 2
    run.run()
    assert {int(value) for name, value in run.optimizer.tensors().items() if name.endswith("/step")} == {6}
    history = run.record.table()
    assert torch.isfinite(history[history[:, 0] > 0, 4]).all()


def test_a_fused_backward_pass_is_the_same_step(make):
    """Without clipping, which is of each weight there, of all together otherwise."""
    runs = [make(str(fused), fused_backward=fused, optimizer="adamw", gradient_clip=0.0, target_steps=3, micro_batch=4)
            for fused in (False, True)]
    for run in runs:
        run.run()
    assert len(runs[0].optimizer.groups) == 1 and len(runs[1].optimizer.groups) > 2
    assert torch.allclose(*(run.record.table()[1:] for run in runs), equal_nan=True)
    assert equal(*({name: value for name, value in final(run).items() if name != "history"} for run in runs))


def test_weights_without_a_gradient_are_left_alone_in_a_fused_backward_pass(make):
    class Partial(Network):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3)
    run = make("run", None, Partial(), fused_backward=True, optimizer="adafactor", target_steps=2)
    before = run.task.parameters["unused.weight"].detach().clone()
    run.run()
    assert torch.equal(run.task.parameters["unused.weight"], before)
    assert run.optimizer.tensors()["level.weight/step"] == 2


def test_previews_use_the_average_and_are_due_at_the_end(make):
    watch = StopAfter(99)
    make("run", watch, preview_every=3, target_steps=7).run()
    assert watch.previews == [3, 6, 7]


def test_interruption_of_a_preview_saves_too(make):
    class Interrupted(Watch):
        def preview(self, step, weights):
            raise KeyboardInterrupt
    run = make("run", Interrupted(), preview_every=2)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    newest = state.latest(run.folder.states)
    assert newest.step == 2
    assert all(torch.equal(p, newest.parameters[n]) for n, p in run.task.parameters.items())


def test_schedules():
    cosine = Settings(schedule="cosine", warm_up=10, target_steps=110, learning_rate=1.0)
    schedule = Schedule.of(cosine)
    assert schedule.at(0) == 0.1 and schedule.at(10) == 1.0
    assert schedule.at(60) == pytest.approx(0.5) and schedule.at(110) == pytest.approx(0.0)
    assert Schedule.of(Settings()).at(4000) == 1e-5


def test_gradient_is_clipped(make):
    run = make("run", target_steps=1, gradient_clip=1e-9, weight_decay=0.0, learning_rate=1e-2)
    before = {n: p.detach().clone() for n, p in run.task.parameters.items()}
    run.run()
    assert all((p - before[n]).abs().max() < 1e-2 for n, p in run.task.parameters.items())


def test_plot_and_running_mean():
    history = torch.tensor([[0, math.nan, 1.0, math.nan, math.nan], [1, 2.0, math.nan, 0.1, 1.0],
                            [2, 4.0, math.nan, 0.1, 1.0]], dtype=torch.float64)
    means = folder.running_mean(history[:, 1]).tolist()
    assert math.isnan(means[0]) and means[1:] == [2.0, 3.0]
    assert folder.plot(history).shape == (432, 768, 3)
