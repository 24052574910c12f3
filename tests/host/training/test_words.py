"""Words tuned contrastively: they learn to tell subjects apart, go on to the bit, and refuse what does not fit."""

import json
from types import SimpleNamespace

import comfy.clip_vision
import folder_paths
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from gcfg_pack.gcfg.host.training import command_line
from gcfg_pack.gcfg.host.training.models.text import TrainableText
from gcfg_pack.gcfg.host.training.subjects import train as subject
from gcfg_pack.gcfg.host.training.subjects import words
from gcfg_pack.gcfg.nulltext.formats import checkpoint
from gcfg_pack.gcfg.training.data.variants import Subject
from gcfg_pack.gcfg.training.data.words import WordSettings
from gcfg_pack.gcfg.training.run import state
from gcfg_pack.gcfg.training.run.task import Watch
from harness.models.text import clip
from harness.models.weights import draw
from harness.training import Vae, draw_pictures

QUICK = {"run_name": "pair", "names": "joe, ann", "nouns": "dog, dog", "target_steps": 6, "views": 2, "batch": 8,
         "save_every": 2, "learning_rate": 1e-2}


class Stop(Watch):
    def __init__(self, step):
        self.step, self.at = step, 0

    def interrupted(self):
        return self.at >= self.step

    def progress(self, step, steps, loss):
        self.at = step


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A genuine vision model of the host with two narrow layers, its features as wide as CLIP-L's."""
    config = {"hidden_act": "quick_gelu", "hidden_size": 64, "image_size": 224, "intermediate_size": 128,
              "model_type": "clip_vision_model", "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 2,
              "patch_size": 28, "projection_dim": 768, "layer_norm_eps": 1e-5}
    path = tmp_path_factory.mktemp("vision") / "config.json"
    path.write_text(json.dumps(config))
    made = comfy.clip_vision.ClipVisionModel(str(path))
    with torch.no_grad():
        for name, tensor in made.model.state_dict().items():
            tensor.copy_(draw(name, tuple(tensor.shape), 0) if tensor.is_floating_point() else tensor)
    return made


@pytest.fixture(scope="module")
def stock():
    with torch.inference_mode():
        return clip("sd15", seed=1)


@pytest.fixture
def tune(tmp_path, monkeypatch, vision, stock):
    """tune(watch, **settings) of two subjects, one of bright discs, one of dark noise."""
    checkpoint.write(tmp_path / "clip.safetensors", {"text_projection.weight": torch.eye(768).half()}, {})
    for name in ("embeddings", "loras"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, (
            [str(tmp_path / name)], folder_paths.folder_names_and_paths[name][1]))
    found = []
    for k in range(2):
        folder = draw_pictures(tmp_path / f"pictures_{k}", 2, size=256, seed=k)
        if k:
            for path in folder.glob("*.png"):
                ImageOps.invert(Image.open(path)).save(path)
        found.append(subject.prepare(Subject(str(folder), "", 64, count=2), Vae(), tmp_path / "latents"))

    def run(watch=None, name="a", images=None, **changes):
        settings = WordSettings(**QUICK | {"output": str(tmp_path / name)} | changes)
        with torch.inference_mode():  # as the host runs nodes, so also what they read
            projection = words.read_projection(tmp_path / "clip.safetensors")
            return words.tune(stock, vision, projection, found if images is None else images, settings,
                              watch or Watch())
    run.embeddings = tmp_path / "embeddings"
    return run


def test_words_come_to_their_own_pictures(tune, stock):
    made = tune(target_steps=40)
    assert made.prompts == ("embedding:joe", "embedding:ann")
    losses = made.history[:, 1]
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
    rows = [checkpoint.read(tune.embeddings / f"{name}.safetensors")[0]["clip_l"] for name in ("joe", "ann")]
    assert [tuple(row.shape) for row in rows] == [(2, 768)] * 2
    text = TrainableText(stock, torch.device("cpu"))
    before = text.row("dog")["l"].repeat(2, 1)
    assert not torch.allclose(rows[0], before) and not torch.allclose(rows[0], rows[1])
    meanings = text.meaning(["a photo of a <0>", "a photo of a <1>"], {"l": rows})
    assert float(F.cosine_similarity(meanings[:1], meanings[1:])) < 0.99


def test_interrupted_run_goes_on_to_the_bit(tune):
    whole = tune(name="whole")
    for name in ("joe", "ann"):
        (tune.embeddings / f"{name}.safetensors").unlink()
    assert tune(Stop(3), name="parts").step == 3
    last = tune(name="parts")
    ours, theirs = (state.latest(run.folder.states).tensors() for run in (whole, last))
    assert all(torch.equal(ours[k].nan_to_num(), theirs[k].nan_to_num()) for k in ours)


def test_the_command_line_tunes_the_same_words(tune, stock, vision, tmp_path, monkeypatch):
    """On the same files; the host itself has one size of vision model, so a smaller one is put in its place."""
    folders = [str(tmp_path / f"pictures_{k}") for k in range(2)]
    tune(images=[subject.SubjectImages(Subject(folder), (), None) for folder in folders])
    wanted = {name: checkpoint.read(tune.embeddings / f"{name}.safetensors")[0] for name in ("joe", "ann")}
    monkeypatch.setattr(command_line, "load", lambda path: (None, stock, None))
    monkeypatch.setattr(comfy.clip_vision, "load", lambda path: vision)
    file = str(tmp_path / "clip.safetensors")
    settings = WordSettings(**QUICK | {"output": str(tmp_path / "line"), "folders": ", ".join(folders), "vision": file,
                                       "clip_file": file, "models": str(tmp_path / "models")})
    for name in wanted:
        (tune.embeddings / f"{name}.safetensors").unlink()
    said = command_line.tune_words(settings, SimpleNamespace(asked=False), None, None)
    assert said.startswith("6 steps are done: README.md in ")
    for name, rows in wanted.items():
        found = checkpoint.read(tmp_path / "models" / "embeddings" / f"{name}.safetensors")[0]
        assert found.keys() == rows.keys() and all(torch.equal(found[key], rows[key]) for key in rows)


@pytest.mark.parametrize("changes, message", [
    ({"names": "joe"}, "2 subjects, 1 names"), ({"names": "joe, joe"}, "2 subjects, 1 names"),
    ({"names": "joe, <a>"}, "letters, digits and _ only"), ({"nouns": "dog, headphone stand"}, "has 2 tokens"),
    ({"nouns": "dog, "}, "2 names and 1 nouns"), ({"nouns": "dog, (cat)"}, "reads some signs as weights")])
def test_bad_input_is_a_sentence(tune, changes, message):
    with pytest.raises(ValueError, match=message):
        tune(**changes)


def test_nothing_is_overwritten(tune):
    (tune.embeddings / "ann.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"ann\.pt.* already"):
        tune()
    assert not (tune.embeddings / "joe.safetensors").exists()


def test_a_text_encoder_without_projection_is_refused(tmp_path, tune, vision, stock):
    checkpoint.write(tmp_path / "part.safetensors", {"text_model.final_layer_norm.weight": torch.ones(768)}, {})
    with pytest.raises(checkpoint.CheckpointError, match="no text projection"):
        words.read_projection(tmp_path / "part.safetensors")
    checkpoint.write(tmp_path / "full.safetensors", {"text_projection.weight": torch.eye(768)}, {})
    assert torch.equal(words.read_projection(tmp_path / "full.safetensors"), torch.eye(768))
