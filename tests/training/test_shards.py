"""Two processes that share the weights: the run of one process, on disk whole, and either goes on with the other's."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gcfg.training.memory import plan
from gcfg.training.run import distributed, state
from gcfg.training.settings import Settings, SettingsError
from gcfg.training.weights import shards
from gcfg.training.weights.optimizers import Optimizer

from .conftest import draw_pictures
from .test_loop import StopAfter

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {"micro_batch": 2, "target_steps": 6, "gradient_clip": 0.5, "preview_every": 3}
SCRIPT = """
import sys
from pathlib import Path
root, folder, changes = sys.argv[1], Path(sys.argv[2]), eval(sys.argv[3])
sys.path[:0] = [root, root + "/tests/training"]
import torch
torch.set_num_threads(1)
import conftest
from gcfg.training.losses.objectives import DiffusionLoss
from gcfg.training.run import distributed
from gcfg.training.run.task import Watch
from gcfg.training.weights import shards
build = conftest.make.__wrapped__(folder, folder / "pictures")

class Shown(Watch):
    def preview(self, step, weights):
        torch.save(dict(weights), folder / f"preview {step}")
    def saved(self, step, weights):
        torch.save(dict(weights), folder / f"saved {step}")

class StopAfter(Watch):
    def __init__(self, step):
        self.step, self.at = step, -1
    def interrupted(self):
        return self.at >= self.step
    def progress(self, step, steps, loss):
        self.at = step

def make(name, watch=None, losses=None):
    network = conftest.Network()
    shards.cut(network, [network.first, network.last], torch.device("cpu"))
    return build(name, watch, network, losses and losses(network), shard=True, **changes)

def saying(run):
    try:
        run.run()
    except Exception as error:
        (folder / f"{run.folder.path.name} {distributed.rank()}").write_text(f"{type(error).__name__}: {error}")

def spoilt(network):
    loss = DiffusionLoss(network, conftest.noised, conftest.denoised, conftest.SIGMAS)
    def losses(x0, noise, level, pictures):
        wrong = distributed.rank() and torch.is_grad_enabled() and broken.step == 1
        return loss(x0, noise, level) * (float("nan") if wrong else 1.0)
    return losses

with distributed.joined(cuda=False):
    make("cut", Shown()).run()
    make("parts", StopAfter(2)).run()
    make("parts").run()
    make("taken over").run()
    broken = make("broken", None, spoilt)
    saying(broken)
    full = make("full")
    distributed.wait()  # for the other, which looks into the folder too
    if distributed.rank() == 0:
        full.folder.states.rename(full.folder.path / "gone")
        full.folder.states.write_text("a file where the folder was")
    full.folder.check_space = lambda *_: ""
    saying(full)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of runs of one process and of two that share the weights."""
    place = tmp_path_factory.mktemp("shards")
    draw_pictures(place / "pictures", 13, wide=5)  # so that processes have unlike numbers of micro-batches
    return place


@pytest.fixture(scope="module")
def both(folder):
    """Make and run them."""
    from . import conftest

    make = conftest.make.__wrapped__(folder, folder / "pictures")
    make("one", **CHANGES).run()
    make("taken over", StopAfter(3), **CHANGES).run()
    arguments = [str(ROOT), str(folder), repr(CHANGES)]
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [subprocess.Popen([sys.executable, str(folder / "script.py"), *arguments], stderr=subprocess.PIPE,
                                  text=True, env=os.environ | joined | {"RANK": str(rank)}) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return make


def newest(folder, name):
    return state.latest(folder / "runs" / name / "states").tensors()


def close(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        ours[key].shape == theirs[key].shape and ours[key].dtype == theirs[key].dtype
        and torch.allclose(ours[key].nan_to_num(), theirs[key].nan_to_num(), rtol=1e-5, atol=1e-5) for key in theirs)


@pytest.mark.usefixtures("both")
class TestTwoProcesses:
    def test_is_the_run_of_one_process(self, folder):
        assert close(newest(folder, "cut"), newest(folder, "one"))

    def test_goes_on_to_the_bit(self, folder):
        whole, parts = newest(folder, "cut"), newest(folder, "parts")
        assert all(torch.equal(whole[key].nan_to_num(), parts[key].nan_to_num()) for key in whole)

    def test_goes_on_with_a_run_of_one_process(self, folder):
        assert close(newest(folder, "taken over"), newest(folder, "one"))

    def test_one_process_goes_on_with_it(self, folder, both):
        shutil.copytree(folder / "runs" / "parts", folder / "runs" / "alone")
        (folder / "runs" / "alone" / "states" / "step_00000006.state").unlink()
        again = both("alone", **CHANGES)
        assert 0 < again.step < 6
        again.run()
        assert close(newest(folder, "alone"), newest(folder, "one"))

    def test_previews_and_exports_see_the_average_whole(self, folder):
        average = state.latest(folder / "runs" / "cut" / "states").average
        for what in ("preview 6", "saved 6"):
            seen = torch.load(folder / what)
            assert seen.keys() == average.keys() and all(torch.equal(seen[name], average[name]) for name in seen)

    def test_a_loss_that_is_not_finite_ends_both(self, folder):
        first, second = ((folder / f"broken {rank}").read_text() for rank in range(2))
        assert "Diverged: the loss of step 2 is not finite. The state of step 1 is saved" in first
        assert "not finite on picture_" in second and state.latest(folder / "runs" / "broken" / "states").step == 1

    def test_a_save_that_fails_ends_both(self, folder):
        first, second = ((folder / f"full {rank}").read_text() for rank in range(2))
        assert first.startswith("OSError: the state of step 3 could not be written") and "from the beginning" in first
        assert second.startswith("RuntimeError: the state could not be saved; see the message of another process")


def test_one_process_has_all(make):
    assert not plan(Settings(shard=True)).shard and plan(Settings(shard=True), processes=2).shard
    assert plan(Settings(shard=True, memory="8 GB"), processes=2).optimizer == "adamw"
    with pytest.raises(SettingsError, match="base of LoRA is frozen .* switch shard off"):
        plan(Settings(shard=True, method="LoRA"))


def test_what_needs_whole_weights_is_refused(monkeypatch, make):
    monkeypatch.setattr(shards, "is_cut", lambda weight: True)
    monkeypatch.setattr(shards, "own", lambda weight: weight.detach())
    with pytest.raises(SettingsError, match="adafactor must see them whole: set optimizer to adamw or lion"):
        Optimizer({"w": nn.Parameter(torch.ones(2, 2))}, "adafactor", 0.0, 0)
    monkeypatch.setattr(distributed, "world", lambda: 5)
    with pytest.raises(ValueError, match="set batch to 5 or more, or start fewer processes"):
        make("few")
