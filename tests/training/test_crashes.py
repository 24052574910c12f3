"""What may happen to a run at any moment: it loses nothing beyond the last save, says so in a sentence, leaves nothing.

Kills and signals reach the real loop in a process of its own.
"""

import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gcfg.training.run import state
from gcfg.training.run.folder import RunFolder
from gcfg.training.run.task import Diverged, OutOfMemory, Watch
from gcfg.training.settings import OPTIMIZERS
from gcfg.training.weights.optimizers import PACKAGES

from .conftest import Network
from .test_loop import StopAfter, loop_loss

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import torch
torch.set_num_threads(1)
for number in (signal.SIGTERM, signal.SIGHUP):  # which nohup and background jobs of a shell ignore, as SIGINT
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
import conftest
from gcfg.train import Interruption
from gcfg.training.run.folder import RunFolder
from gcfg.training.run.task import Watch
make = conftest.make.__wrapped__(Path(sys.argv[3]), Path(sys.argv[3]) / "pictures")
with Interruption() as interruption:
    class Terminal(Watch):
        def begins(self):
            interruption.patient = True
        def interrupted(self):
            return interruption.asked
    try:
        with RunFolder(Path(sys.argv[3]) / "runs" / "run").locked():
            print("locked", flush=True)
            run = make("run", Terminal(), target_steps=100_000, save_every=2, held_out_every=0)
            run.run()
        print("stopped", run.step, flush=True)
    except (RuntimeError, OSError, ValueError) as error:
        print("failed", error, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@contextlib.contextmanager
def running(folder):
    """The loop in another process, killed at the end."""
    arguments = [str(ROOT), str(ROOT / "tests" / "training"), str(folder)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.002)


def remains(folder):
    """Files below a folder that are not finished."""
    return [path for path in folder.rglob("*") if ".part" in path.name or ".tmp" in path.name]


def done(run):
    lines = (run / "loss.csv").read_text().rstrip().splitlines()
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


def killed_at_a_random_moment(make, folder, source):
    """Kill -9 after some saves, wherever the process is; everything but the steps since the last save is there."""
    states, target = folder / "runs" / "run" / "states", source.randint(1, 6)
    before = len(state.files(states)) and state.latest(states).step
    with running(folder) as process:
        wait_for(lambda: state.files(states) and int(state.files(states)[-1].stem[5:]) >= before + 2 * target, process)
        if source.random() < 0.5:  # in the middle of a save
            deadline = time.monotonic() + 0.5
            while not remains(states) and time.monotonic() < deadline:
                time.sleep(0.0005)
        time.sleep(source.random() * 0.01)
    newest = state.latest(states)
    assert newest.step >= before + 2 * target and done(folder / "runs" / "run") - newest.step <= 2
    again = make("run", save_every=2, held_out_every=0, target_steps=newest.step + 1)
    with again.folder.locked():
        assert remains(folder / "runs") == []
        again.run()
    assert again.step == newest.step + 1


def test_kill_at_a_random_moment(make, tmp_path):
    killed_at_a_random_moment(make, tmp_path, random.Random(0))


@pytest.mark.slow
def test_kill_at_many_random_moments(make, tmp_path):
    source = random.Random(1)
    for _ in range(20):
        killed_at_a_random_moment(make, tmp_path, source)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_save_and_stop(make, tmp_path, number):
    run = tmp_path / "runs" / "run"
    with running(tmp_path) as process:
        wait_for(lambda: (run / "loss.csv").exists() and done(run) >= 3, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "saving after this step, then stopping" in err
    assert f"stopped {done(run)}" in out and state.latest(run / "states").step == done(run)
    assert remains(tmp_path) == []


def test_two_processes_on_one_run(make, tmp_path):
    make("run", StopAfter(1)).run()  # which draws and encodes
    with running(tmp_path) as first:
        assert first.stdout.readline() == "locked\n"
        with running(tmp_path) as second:
            out, err = second.communicate(timeout=90)
    assert second.returncode == 1 and "another process is training the run in" in out and "Traceback" not in err


@pytest.mark.parametrize("phase", ["begin", "state", "table"])
def test_full_disk_in_every_phase(make, little_space, phase):
    make("run", StopAfter(4), save_every=3).run()
    run = make("run", save_every=3, target_steps=12)
    table = run.folder.table.stat().st_size
    most = {"begin": 10, "state": 2000, "table": table}[phase]
    with little_space(most), pytest.raises(OSError) as raised:
        run.folder.begin(run.settings) if phase == "begin" else run.run()
    assert phase == "begin" or "could not be written" in str(raised.value) and "from step 4" in str(raised.value)
    assert state.latest(run.folder.states).step == 4 and remains(run.folder.path) == []
    again = make("run", save_every=3, target_steps=12)
    again.run()
    assert again.step == 12


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot be written .* choose another output"), RunFolder(tmp_path / "a").locked():
        pass


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError, match="run's folder .* cannot be written"), RunFolder(tmp_path / "a").locked():
        pass


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:])
def test_a_gradient_of_nan_is_never_saved(make, optimizer, precision, fused):
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer][0])
    if optimizer == "prodigy" and (fused or precision == "bfloat16"):
        pytest.skip("prodigy updates all weights together, in float32")
    network = Network(dtype=getattr(torch, precision))
    loss = loop_loss(network)

    def losses(x0, noise, level, pictures):
        values = loss(x0, noise, level)
        if run.step == 5:  # the loss is finite, its gradient is not
            values = values + (network.first.bias.float() * 0.0).square().sum().sqrt()
        return values
    run = make("run", None, network, losses, optimizer=optimizer, precision=precision, fused_backward=fused,
               save_every=4, learning_rate=1.0 if optimizer == "prodigy" else 1e-2)
    with pytest.raises(Diverged, match="gradient of .*not finite.*Lower learning_rate"):
        run.run()
    newest = state.latest(run.folder.states)
    assert newest.step == (4 if fused else 5)
    for name, tensor in newest.tensors().items():
        assert name == "history" or bool(torch.isfinite(tensor.float()).all()), name


@pytest.mark.parametrize("rank, where", [(0, "from step 3"), (1, "from its last save")])
def test_no_memory_for_an_update(make, monkeypatch, rank, where):
    """It fails in one process alone; a later one does not know what the first has saved."""
    def step(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")
    make("run", StopAfter(3)).run()
    run = make("run")
    monkeypatch.setattr("gcfg.training.run.distributed.rank", lambda: rank)
    monkeypatch.setattr(run.optimizer, "step", step)
    with pytest.raises(OutOfMemory, match=f"at the update of step 4 .*. The run goes on {where}. Choose a smaller"):
        run.run()
    assert state.latest(run.folder.states).step == 3


def test_weights_that_are_not_finite_are_never_saved(make):
    class Spoil(Watch):
        def progress(self, step, steps, loss):
            if step == 5:
                run.task.parameters["last.bias"].data[0] = float("inf")
    run = make("run", Spoil(), save_every=3, held_out=0)
    with pytest.raises(Diverged, match="not finite"):
        run.run()
    assert state.latest(run.folder.states).step == 3


def test_files_have_the_rights_of_any_new_file(make):
    before = os.umask(0o027)
    try:
        run = make("run", target_steps=1)
        with run.folder.locked():
            run.run()
    finally:
        os.umask(before)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.folder.path.rglob("*") if path.is_file()}
    assert set(rights.values()) == {0o640} and len(rights) >= 4
