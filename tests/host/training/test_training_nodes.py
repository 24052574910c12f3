"""The two nodes, in process and through a server."""

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch

from gcfg_pack.gcfg.host.training import train as training
from gcfg_pack.gcfg.training.run import state
from gcfg_pack.nodes.training import GCFGImageFolder, GCFGTrainConceptModel
from harness.sampling import gcfg
from harness.training import Clip, Vae, draw_pictures

QUICK = {"target_steps": 5, "method": "full", "rank": 4, "memory": "auto", "learning_rate": 1e-3, "batch": 2,
         "ema": True, "seed": 7, "save_every": 3, "preview_every": 0}


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output" / "concept_models"


@pytest.fixture
def pictures(tmp_path, output):
    folder = draw_pictures(tmp_path / "pictures", 12)
    (folder / "notes.txt").write_text("no picture")
    return GCFGImageFolder.execute(Vae(), str(folder), 64, "buckets", True).args


def train(base, pictures, **changes):
    with torch.inference_mode():
        return GCFGTrainConceptModel.execute(base, Clip(), pictures, **QUICK | {"run_name": "a"} | changes).args


def test_pictures_are_listed(pictures):
    images, report, sheet = pictures
    assert sheet.ndim == 4 and sheet.shape[2] == 1024 and 0.0 < sheet.mean() < 1.0
    assert len(images.latents.found) == 12
    assert report.splitlines() == ["12 pictures, 1 files skipped", "  notes.txt: no picture file"]


def test_changed_folder_runs_again(tmp_path, pictures):
    before = GCFGImageFolder.fingerprint_inputs(str(tmp_path / "pictures"))
    draw_pictures(tmp_path / "pictures", 13)
    assert GCFGImageFolder.fingerprint_inputs(str(tmp_path / "pictures")) != before
    assert GCFGImageFolder.fingerprint_inputs("") != before


def test_a_folder_below_the_input_folder(tmp_path, output, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    draw_pictures(tmp_path / "input" / "faces", 2)
    images, *_ = GCFGImageFolder.execute(Vae(), "faces", 64, "square", False).args
    assert len(images.latents.found) == 2
    draw_pictures(tmp_path / "input" / "faces", 3)
    assert GCFGImageFolder.fingerprint_inputs("faces") != GCFGImageFolder.fingerprint_inputs("cats")
    with pytest.raises(ValueError, match=f"there is no folder '{tmp_path / 'input' / 'cats'}'"):
        GCFGImageFolder.execute(Vae(), "cats", 64, "square", False)
    with pytest.raises(ValueError, match="no folder is named"):
        GCFGImageFolder.execute(Vae(), " ", 64, "square", False)


def test_the_curve_is_the_last_preview(base, pictures, monkeypatch):
    """Frontends go on showing the last preview: the curve of the run below its newest pictures."""
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: seen.append(preview))
    train(base, pictures[0], target_steps=2, preview_every=2, preview_steps=1)
    pictures_, last = [preview[1] for preview in seen if preview is not None][-2:]
    assert last.width == 768 and last.height == 432 + round(768 * pictures_.height / pictures_.width)


def test_an_error_names_no_class_of_the_pack(base, pictures):
    train(base, pictures[0], target_steps=1)
    with pytest.raises(ValueError, match="rank was 4, now 8") as refused:
        train(base, pictures[0], rank=8)
    assert refused.type is ValueError


def test_outputs(base, pictures, output, tiny):
    model, loss, folder = train(base, pictures[0])
    assert folder == str(output / "a") and loss.shape == (1, 432, 768, 3)
    assert {".identity", ".lock", "config.toml", "loss.csv", "loss.png", "README.md", "a.safetensors", "states",
            "previews"} == {path.name for path in (output / "a").iterdir()} - {"tensorboard"}  # where it is installed
    assert "notes.txt: no picture file" in (output / "a" / "README.md").read_text()
    assert torch.isfinite(gcfg(base, tiny.conditioning(1), tiny.conditioning(2), tiny.latent(), concept=model)).all()


def test_interrupted_and_queued_again_is_to_the_bit_the_same(base, pictures, output, monkeypatch):
    train(base, pictures[0], run_name="whole")
    asked = []

    def interrupted():
        asked.append(1)
        if len(asked) == 3:
            comfy.model_management.interrupt_current_processing()
        return original()
    original = comfy.model_management.processing_interrupted
    monkeypatch.setattr(training.comfy.model_management, "processing_interrupted", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(base, pictures[0], run_name="parts")
    assert state.latest(output / "parts" / "states").step == 2
    train(base, pictures[0], run_name="parts")
    ours, theirs = (state.latest(output / name / "states").tensors() for name in ("whole", "parts"))
    assert all(torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num()) for key in ours)
    assert (output / "whole" / "loss.csv").read_text() == (output / "parts" / "loss.csv").read_text()


@pytest.mark.server
def test_through_the_server(server, tmp_path):
    folder = draw_pictures(tmp_path / "pictures")
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.models.checkpoint}},
        "2": {"class_type": "GCFGImageFolder", "inputs": {
            "vae": ["1", 2], "folder": str(folder), "resolution": 64, "crop": "square", "flip": True}},
        "3": {"class_type": "GCFGTrainConceptModel", "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "images": ["2", 0], "run_name": "discs", **QUICK, "method": "LoRA",
            "target_steps": 24, "learning_rate": 3e-3, "preview_every": 24, "save_every": 12, "preview_steps": 2,
            "ema_decay": 0.8, "held_out_every": 12}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {"class_type": "GCFGKSampler", "inputs": {
            "model": ["1", 0], "concept_model": ["3", 0], "positive": ["4", 0], "negative": ["4", 0],
            "latent_image": ["5", 0], "seed": 1, "steps": 4, "concept_scale": 1.0, "control_scale": 0.0,
            "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "trained"}},
    }
    assert len(server.images(server.queue(graph))) == 2
    run = server.base / "output" / "concept_models" / "discs"
    rows = [line.split(",") for line in (run / "loss.csv").read_text().splitlines()[1:]]
    held_out = [float(row[2]) for row in rows if row[2]]
    assert len(rows) == 25 and held_out[-1] < 0.9 * held_out[0]
    assert (run / "previews" / "step_00000024.jpg").exists()
    loader = server.request("/object_info/GCFGLoadConceptModel")["GCFGLoadConceptModel"]["input"]["required"]
    assert "discs/discs.safetensors" in str(loader["concept_name"])
