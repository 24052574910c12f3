"""``python -m gcfg subject`` and ``words``: the nodes' runs, to the bit; errors in one line."""

import os
import subprocess
import sys

import comfy.sd
import folder_paths
import pytest
import torch

from gcfg_pack.gcfg.nulltext.formats import checkpoint as files_of
from gcfg_pack.gcfg.training.data.words import WordSettings
from gcfg_pack.gcfg.training.run import state
from gcfg_pack.gcfg.training.subject_settings import SubjectSettings
from gcfg_pack.nodes.subjects import GCFGSubjectImages, GCFGTrainSubject
from harness.find import PACK
from harness.models.files import checkpoint
from harness.training import draw_pictures

VALUES = {"class_word": "dog", "target_steps": 2, "learning_rate": 1e-3, "preview_every": 0, "save_every": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a checkpoint and pictures."""
    folder = tmp_path_factory.mktemp("subject")
    draw_pictures(folder / "pictures", 3)
    torch.save(checkpoint(0), folder / "base.ckpt")
    return folder


def command(host, verb, path, *launcher):
    """The finished process of one run."""
    arguments = [sys.executable, "-m", *launcher, "gcfg", verb, str(path), "--comfyui", str(host), "--cpu"]
    return subprocess.run(arguments, cwd=PACK, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True, timeout=500)


def write(files, name, **changes):
    values = VALUES | {"run_name": "joe", "folder": "pictures", "resolution": 64, "variants": 4, "output": name,
                       "checkpoint": "base.ckpt", "models": f"{name}_models"} | changes
    path = files / f"{name}.toml"
    path.write_text(SubjectSettings(**values).to_toml())
    return path


@pytest.fixture(scope="module")
def line(files, host):
    """A finished run."""
    done = command(host, "subject", write(files, "line"))
    assert done.returncode == 0, done.stderr


def test_same_result_as_the_node_to_the_bit(files, line, tmp_path, monkeypatch):
    for name in ("embeddings", "loras"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, (
            [str(tmp_path / name)], folder_paths.folder_names_and_paths[name][1]))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "node"))
    with torch.inference_mode():
        base, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(files / "base.ckpt"))
        images = GCFGSubjectImages.execute(vae, str(files / "pictures"), 64, True, True, variants=4).args[0]
        made = GCFGTrainSubject.execute(base, clip, images, "joe", **VALUES)
    assert made.args[1] == "embedding:joe dog"
    ours, theirs = (state.latest(path / "states").tensors()
                    for path in (files / "line" / "joe", tmp_path / "node" / "subjects" / "joe"))
    assert [key for key in ours if not torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num())] == []
    for kind in ("embeddings", "loras"):
        by_line, by_node = (files_of.read(folder / kind / "joe.safetensors")[0]
                            for folder in (files / "line_models", tmp_path))
        assert all(torch.equal(by_line[key], by_node[key]) for key in by_node)


def test_two_processes_make_the_same_subject(files, line, host):
    """With torchrun: each has half of every batch; Adam makes more than the last bit of a gradient near zero."""
    done = command(host, "subject", write(files, "two"), "torch.distributed.run", "--standalone", "--nproc-per-node",
                   "2", "-m")
    assert done.returncode == 0, done.stderr
    ours, theirs = (state.latest(files / name / "joe" / "states").history.nan_to_num() for name in ("two", "line"))
    assert torch.allclose(ours, theirs, rtol=1e-5)
    for kind in ("embeddings", "loras"):
        ours, theirs = (files_of.read(files / f"{name}_models" / kind / "joe.safetensors")[0]
                        for name in ("two", "line"))
        assert ours.keys() == theirs.keys() and ours
        assert all((ours[key] - theirs[key]).abs().mean() < 1e-4 * theirs[key].abs().mean() for key in ours)


def test_errors_are_one_line(files, host):
    done = command(host, "subject", write(files, "wrong", class_word="headphone stand"))
    assert done.returncode == 2 and "gcfg subject: the class word 'headphone stand' has 2 tokens" in done.stderr
    path = files / "words.toml"
    path.write_text(WordSettings(checkpoint="base.ckpt", vision="none.safetensors", names="a, b").to_toml())
    done = command(host, "words", path)
    assert done.returncode == 2 and "'vision' must name the vision model" in done.stderr
