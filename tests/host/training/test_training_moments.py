"""Signals, a full disk and a second process at exact moments of the command line's run: a sentence, nothing lost."""

import contextlib
import os
import re
import signal
import warnings

import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg import __main__ as command
from gcfg_pack.gcfg import files as written
from gcfg_pack.gcfg import train
from gcfg_pack.gcfg.host.training import train as training
from gcfg_pack.gcfg.training.run import state
from gcfg_pack.gcfg.training.run.folder import RunFolder
from gcfg_pack.gcfg.training.settings import Settings
from harness.models.files import checkpoint
from harness.training import draw_pictures

VALUES = {"run_name": "discs", "target_steps": 4, "method": "LoRA", "rank": 2, "learning_rate": 1e-3, "batch": 4,
          "save_every": 2, "held_out_every": 0, "preview_every": 2, "preview_steps": 1, "preview_count": 1,
          "folder": "pictures", "resolution": 64, "checkpoint": "base.ckpt", "tensorboard": False}
ENDINGS = {"encoding": ".npy", "saving": ".state", "exporting": ".safetensors", "preview": ".jpg"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a checkpoint and pictures."""
    folder = tmp_path_factory.mktemp("moments")
    draw_pictures(folder / "pictures", 6)
    torch.save(checkpoint(0), folder / "base.ckpt")
    return folder


@pytest.fixture
def begin(inputs, tmp_path, host, capsys):
    """begin(output) -> the exit code and the last line of a ``train`` in this process, into that folder."""
    def run(output, **changes):
        path = inputs / "settings.toml"
        path.write_text(Settings(**VALUES | changes).to_toml())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = command.main(["train", str(path), "--output", str(output), "--comfyui", str(host), "--cpu"])
        shown = capsys.readouterr()
        return code, (shown.out if code == 0 else shown.err).strip().splitlines()[-1]
    return run


@pytest.fixture(scope="module")
def whole(inputs, host):
    """The last state of a run that nothing has interrupted."""
    path = inputs / "whole.toml"
    path.write_text(Settings(**VALUES | {"output": "whole"}).to_toml())
    assert command.main(["train", str(path), "--comfyui", str(host), "--cpu"]) == 0
    return state.latest(inputs / "whole" / "discs" / "states").tensors()


def at(monkeypatch, phase, act):
    """Call ``act`` once, in the middle of a phase."""
    acted = []

    def once():
        if not acted:
            acted.append(1)
            act()
    if phase in ENDINGS:
        original = written.replacing

        @contextlib.contextmanager
        def replacing(path, **options):
            with original(path, **options) as file:
                if str(path).endswith(ENDINGS[phase]):
                    once()
                yield file
        monkeypatch.setattr(written, "replacing", replacing)
        return
    place, name = {"loading": (comfy.sd, "load_checkpoint_guess_config"), "measuring": (training, "_features"),
                   "training": (training.loop.Training, "optimize")}[phase]
    own = getattr(place, name)

    def called(*args, **kwargs):
        once()
        return own(*args, **kwargs)
    monkeypatch.setattr(place, name, called)


def remains(folder):
    return [path for path in folder.rglob("*") if ".part" in path.name or ".tmp" in path.name]


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal; a process in a shell's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


PHASES = ["loading", "measuring", "training", *ENDINGS]
EACH = [(phase, (signal.SIGINT, signal.SIGTERM)[k % 2]) for k, phase in enumerate(PHASES)]
OTHERS = [pytest.param(phase, (signal.SIGTERM, signal.SIGINT)[k % 2], marks=pytest.mark.slow)
          for k, phase in enumerate(PHASES)]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("phase, number", EACH + OTHERS)
def test_a_signal_in_every_phase(begin, whole, tmp_path, monkeypatch, phase, number):
    handlers = [signal.getsignal(each) for each in train.SIGNALS]
    with monkeypatch.context() as patched:
        at(patched, phase, lambda: os.kill(os.getpid(), number))
        assert begin(tmp_path) == (130, "interrupted")
    assert [signal.getsignal(each) for each in train.SIGNALS] == handlers and remains(tmp_path) == []
    run, done = tmp_path / "discs", {"training": 1, "saving": 2, "exporting": 2, "preview": 2}.get(phase)
    states = state.files(run / "states") if run.exists() else []
    assert [path.stem for path in states] == ([f"step_{done:08}"] if done else [])
    assert (run / "discs.safetensors").exists() == bool(done)
    code, said = begin(tmp_path)
    assert code == 0 and f"{run}/discs.safetensors is the concept model" in said
    ours = state.latest(run / "states").tensors()
    assert ours.keys() == whole.keys()
    assert [key for key in ours if not torch.equal(ours[key].nan_to_num(), whole[key].nan_to_num())] == []


@pytest.mark.parametrize("phase, said", [
    ("loading", "latents in .* cannot be written .No space left on device.; free some space"),
    ("encoding", "latents in .* cannot be written .No space left on device.; free some space"),
    ("measuring", "run's folder .* cannot be written .No space left on device.; make it writable, free some space"),
    ("saving", "the state of step 2 could not be written .*No space left.* Free some space .* from the beginning"),
    ("exporting", "concept model could not be written to .*No space left.* the state of step 2 is saved. Free some")])
def test_a_full_disk_in_every_phase(begin, small_disk, filled, monkeypatch, phase, said):
    with contextlib.ExitStack() as full, monkeypatch.context() as patched:
        at(patched, phase, lambda: full.enter_context(filled(small_disk)))
        code, line = begin(small_disk, target_steps=2, preview_every=0)
        assert code == 2 and re.match(f"gcfg train: (the )?{said}", line) and "Errno" not in line
    assert remains(small_disk) == []
    assert begin(small_disk, target_steps=2, preview_every=0)[0] == 0
    assert (small_disk / "discs" / "discs.safetensors").stat().st_size > 1000


def test_a_preview_on_a_full_disk_ends_nothing(begin, small_disk, filled, monkeypatch, caplog):
    with contextlib.ExitStack() as full:
        at(monkeypatch, "preview", lambda: full.enter_context(filled(small_disk)))
        begin(small_disk, target_steps=2, save_every=1)
    assert "no preview of step 2 (OSError" in caplog.text and state.latest(small_disk / "discs" / "states").step == 2


def test_a_second_process_is_told_in_a_sentence(begin, tmp_path):
    with RunFolder(tmp_path / "discs").locked():
        code, line = begin(tmp_path)
    assert code == 1 and line.startswith("gcfg train: another process is training the run in")
    assert begin(tmp_path)[0] == 0


def test_files_can_be_read_by_others(begin, tmp_path):
    before = os.umask(0o027)
    try:
        begin(tmp_path, target_steps=2)
    finally:
        os.umask(before)
    rights = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert rights == {0o640}
