"""``python -m gcfg train``: the same run as the node's, to the bit; several processes; clear errors."""

import os
import signal
import subprocess
import sys

import comfy.sd
import folder_paths
import pytest
import torch

from gcfg_pack.gcfg.training import state
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


def command(host, path, *launcher):
    """The finished process of one ``train``."""
    arguments = [sys.executable, "-m", *launcher, "gcfg", "train", str(path), "--comfyui", str(host), "--cpu"]
    with subprocess.Popen(arguments, cwd=PACK, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            process.out, process.err = process.communicate(timeout=120)
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


def test_two_processes_have_the_same_loss_curve(run, files, host):
    path = write(files, "two")
    done = command(host, path, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    assert done.returncode == 0, done.err
    ours, theirs = (state.latest(folder / "states").history.nan_to_num() for folder in (run, files / "two" / "discs"))
    assert torch.allclose(ours, theirs, rtol=1e-3)


def test_errors_are_one_line(files, host):
    done = command(host, write(files, "none", checkpoint="missing.ckpt"))
    assert done.returncode == 1
    assert done.err.startswith("gcfg train: the base model") and "missing.ckpt" in done.err
