"""``python -m gcfg train``: the same run as the node's, to the bit; several processes; clear errors."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import folder_paths
import pytest
import torch

from gcfg_pack.gcfg.host.training import command_line
from gcfg_pack.gcfg.nulltext.formats import checkpoint as checkpoint_file
from gcfg_pack.gcfg.training.run import state
from gcfg_pack.gcfg.training.settings import Settings
from gcfg_pack.nodes.training import GCFGImageFolder, GCFGTrainConceptModel
from harness.find import PACK
from harness.models.files import checkpoint
from harness.training import draw_pictures

VALUES = {"run_name": "discs", "target_steps": 4, "method": "LoRA", "rank": 2, "learning_rate": 1e-3, "batch": 4,
          "save_every": 2, "preview_every": 0, "held_out_every": 2, "micro_batch": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a checkpoint and pictures."""
    folder = tmp_path_factory.mktemp("training")
    draw_pictures(folder / "pictures", 12)
    torch.save(checkpoint(0), folder / "base.ckpt")
    return folder


def write(files, name, **changes):
    settings = Settings(**VALUES | {"folder": "pictures", "resolution": 64, "crop": "square", "checkpoint": "base.ckpt",
                                    "output": name} | changes)
    path = files / f"{name}.toml"
    path.write_text(settings.to_toml())
    return path


def command(host, path, *launcher, options=(), stop=None):
    """The finished process of one ``train``, which gets SIGTERM once ``stop()`` is true."""
    arguments = [sys.executable, "-m", *launcher, "gcfg", "train", str(path), "--comfyui", str(host), "--cpu", *options]
    with subprocess.Popen(arguments, cwd=PACK, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while stop and not stop() and process.poll() is None:
                time.sleep(0.01)
            if stop:
                process.terminate()
            process.out, process.err = process.communicate(timeout=300)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that torchrun has started
            raise
        return process


@pytest.fixture(scope="module")
def run(host, files):
    """The folder of a run by the command line."""
    done = command(host, write(files, "line"))
    assert done.returncode == 0, done.err
    return files / "line" / "discs"


def test_same_result_as_the_node_to_the_bit(run, files, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(files / "node"))
    with torch.inference_mode():
        base, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(files / "base.ckpt"))
        pictures = GCFGImageFolder.execute(vae, str(files / "pictures"), 64, "square", True).args[0]
        folder = GCFGTrainConceptModel.execute(base, clip, pictures, **VALUES).args[2]
    assert folder == str(files / "node" / "concept_models" / "discs")
    ours, theirs = (state.latest(path / "states").tensors()
                    for path in (run, files / "node" / "concept_models" / "discs"))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num())] == []
    assert (run / "discs.safetensors").read_bytes()[-1000:] == (
        files / "node" / "concept_models" / "discs" / "discs.safetensors").read_bytes()[-1000:]


def test_a_moved_run_goes_on_without_encoding_again(run, files, host, tmp_path):
    """The folder of runs on another machine: nothing but a path to the checkpoint, and to the pictures, is needed."""
    shutil.copytree(files / "line", tmp_path / "elsewhere")
    shutil.copytree(files / "pictures", tmp_path / "photographs")
    moved = tmp_path / "elsewhere" / "discs"
    text = (moved / "config.toml").read_text()
    assert str(files) not in text
    (moved / "config.toml").write_text(text.replace("target_steps = 4", "target_steps = 6"))
    latents = sorted((tmp_path / "elsewhere" / "concept_latents").rglob("*.npy"))
    done = command(host, moved / "config.toml", options=["--checkpoint", str(files / "base.ckpt"), "--folder",
                                                         str(tmp_path / "photographs")])
    assert done.returncode == 0, done.err
    assert state.latest(moved / "states").step == 6 and "6 steps are done" in done.out and str(moved) in done.out
    assert sorted((tmp_path / "elsewhere" / "concept_latents").rglob("*.npy")) == latents
    assert not (files / "line" / "discs" / "states" / "step_00000006.state").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "photographs"]


@pytest.mark.parametrize("phase", ["encoding", "training"])
def test_signals_in_every_phase(files, host, phase):
    path = write(files, phase, target_steps=100_000, folder="many" if phase == "encoding" else "pictures")
    if phase == "encoding":
        draw_pictures(files / "many", 3000)
    run = files / phase / "discs"

    def reached():
        if phase == "encoding":
            return len(list((files / phase).rglob("*.npy"))) > 3
        return (run / "loss.csv").exists() and len((run / "loss.csv").read_text().splitlines()) > 4
    done = command(host, path, stop=reached)
    assert done.returncode == 130 and "Traceback" not in done.err, done.err
    assert [place for place in (files / phase).rglob("*.part")] == []
    if phase == "encoding":
        assert not run.exists()
    else:
        steps = int((run / "loss.csv").read_text().split()[-1].split(",")[0])
        assert state.latest(run / "states").step == steps and (run / "discs.safetensors").exists()


def test_two_processes_have_the_same_loss_curve(run, files, host):
    path = write(files, "two")
    done = command(host, path, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    assert done.returncode == 0, done.err
    ours, theirs = (state.latest(folder / "states").history.nan_to_num() for folder in (run, files / "two" / "discs"))
    assert torch.allclose(ours, theirs, rtol=1e-3)


def test_weights_cut_over_two_processes(files, host, monkeypatch):
    """They make the run, the state and the model of one process."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(files / "whole"))
    values = VALUES | {"method": "full", "learning_rate": 1e-4, "gradient_clip": 0.01}
    with torch.inference_mode():
        base, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(files / "base.ckpt"))
        pictures = GCFGImageFolder.execute(vae, str(files / "pictures"), 64, "square", True).args[0]
        one = Path(GCFGTrainConceptModel.execute(base, clip, pictures, **values).args[2])
    path = write(files, "cut", **values | {"shard": True, "preview_every": 4, "preview_steps": 1, "preview_count": 1})
    done = command(host, path, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    assert done.returncode == 0, done.err
    two = files / "cut" / "discs"
    ours, theirs = (state.latest(run / "states").tensors() for run in (two, one))
    assert ours.keys() == theirs.keys() and len(list((two / "previews").iterdir())) == 1
    assert {key: float((ours[key].nan_to_num() - theirs[key].nan_to_num()).abs().max()) for key in ours
            if not torch.allclose(ours[key].nan_to_num(), theirs[key].nan_to_num(), rtol=1e-4, atol=1e-5)} == {}
    ours, theirs = (checkpoint_file.read(run / "discs.safetensors")[0] for run in (two, one))
    assert ours.keys() == theirs.keys() and all(
        torch.allclose(ours[key].float(), theirs[key].float(), rtol=1e-2, atol=1e-5) for key in ours)


def test_the_bar_begins_with_the_first_step(capsys):
    """Loading is no training time."""
    made = []
    watch = command_line.TerminalWatch(SimpleNamespace(asked=False, patient=False), lambda title: made.append(title))
    watch.tell("27 pictures")
    assert made == [] and capsys.readouterr().out == "27 pictures\n"
    watch.begins()
    assert made == ["training"]


def test_errors_are_one_line(files, host):
    done = command(host, write(files, "none", checkpoint="missing.ckpt"))
    assert done.returncode == 2
    assert done.err.startswith("gcfg train: the base model") and "missing.ckpt" in done.err
