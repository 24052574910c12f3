"""Inputs that do not fit a run, or are not those of the run any more, are refused; what only shows ends nothing."""

import comfy.model_management
import comfy.model_sampling
import folder_paths
import pytest
import torch
from PIL import Image

from gcfg_pack.gcfg.host.training import images, preview
from gcfg_pack.gcfg.host.training import train as training
from gcfg_pack.gcfg.training.data import dataset
from gcfg_pack.gcfg.training.run.task import Watch
from gcfg_pack.gcfg.training.settings import Settings
from gcfg_pack.nodes.training import GCFGTrainConceptModel
from harness.training import Clip, Vae, draw_pictures

QUICK = {"run_name": "discs", "method": "LoRA", "rank": 2, "batch": 4, "learning_rate": 1e-3, "preview_every": 0,
         "save_every": 1, "held_out_every": 0, "target_steps": 1}


class DeepVae(Vae):
    """Sixteen channels, and weights of its own."""

    def get_sd(self):
        return {"weight": torch.ones(20, 20)}

    def encode(self, pixels):
        return super().encode(pixels).repeat(1, 4, 1, 1)


class OtherClip(Clip):
    """Differs from ``Clip`` by so much noise."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def encode_from_tokens_scheduled(self, tokens):
        (features, extra), = super().encode_from_tokens_scheduled(tokens)
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(7))
        return [[features + self.noise * features.std() * noise, extra]]


class OtherVae(Vae):
    def get_sd(self):
        return {"weight": torch.linspace(-1, 1, 400).view(20, 20)}


@pytest.fixture
def folder(tmp_path):
    return draw_pictures(tmp_path / "pictures", 12)


@pytest.fixture
def train(tmp_path, folder):
    """train(base, clip, vae, watch, **settings)"""
    def run(base, clip=None, vae=None, watch=None, **changes):
        pictures = images.prepare(dataset.Source(str(folder), 64), vae or Vae(), tmp_path / "latents")
        settings = Settings(**QUICK | {"output": str(tmp_path / "runs")} | changes)
        with torch.inference_mode():
            return training.train(base, clip or Clip(), pictures, settings, watch or Watch())
    return run


def test_a_vae_with_other_channels(base, train):
    with pytest.raises(ValueError, match="16 channels, but SD15 .* has 4; give Concept Image Folder the base model's"):
        train(base, vae=DeepVae())


def test_a_text_encoder_of_another_family(base, train):
    with pytest.raises(ValueError, match="conditioning is 1024 wide, but SD15 .* reads 768"):
        train(base, Clip(width=1024))


def test_changed_inputs_of_a_run(base, train, tiny):
    train(base)
    with pytest.raises(ValueError, match="another autoencoder; connect that one"):
        train(base, vae=OtherVae(), target_steps=2)
    with pytest.raises(ValueError, match="another base model"):
        train(tiny.sd15(seed=5), target_steps=2)
    with pytest.raises(ValueError, match="another model sampling"):
        train(tiny.sd15(seed=1, prediction="v"), target_steps=2)
    with pytest.raises(ValueError, match="another text encoder"):
        train(base, OtherClip(1.0), target_steps=2)
    import comfy.lora
    tuned, file = base.clone(), tiny.lora(base)
    names = comfy.lora.model_lora_keys_unet(base.model, {})
    tuned.add_patches(comfy.lora.load_lora(file, names), 1.0)
    with pytest.raises(ValueError, match="another set of LoRAs"):
        train(tuned, target_steps=2)
    other_gpu = tiny.sd15(seed=1, dtype=torch.bfloat16)  # as it would load them
    assert train(other_gpu, OtherClip(0.05), target_steps=2).step == 2


def test_a_preview_that_fails_does_not_end_a_run(base, train, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise KeyError("sampler")
    monkeypatch.setattr(preview.comfy.sample, "sample", broken)
    made = train(base, target_steps=2, preview_every=1, preview_steps=1)
    assert made.step == 2 and "no preview of step 1 (KeyError" in caplog.text
    assert list(made.folder.previews.iterdir()) == []


def test_an_interruption_in_a_preview_saves(base, train, tmp_path):
    class Stop(Watch):
        def interrupted(self):
            return self.at == 2

        def progress(self, step, steps, loss):
            self.at = step
        at = 0
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(base, watch=Stop(), target_steps=4, preview_every=2, preview_steps=4, save_every=100)
    assert [path.name for path in (tmp_path / "runs" / "discs" / "states").iterdir()] == ["step_00000002.state"]


def test_interrupted_before_the_first_step_exports_nothing(base, train):
    class Stop(Watch):
        def interrupted(self):
            return True
    made = train(base, watch=Stop())
    assert made.step == 0 and list(made.folder.path.glob("*.safetensors")) == []


def test_a_model_at_each_save_and_numbered_ones(base, train):
    seen = []

    class Look(Watch):
        def progress(self, step, steps, loss):
            seen.append(sorted(path.name for path in (made_in).glob("*discs.safetensors")))
    made_in = train(base, target_steps=1).folder.path
    made = train(base, watch=Look(), target_steps=4, save_every=1, export_every=2)
    assert all(names == ["discs.safetensors"] for names in seen)
    assert {path.name for path in made.folder.path.glob("discs_step*")} == {
        "discs_step_00000002.safetensors", "discs_step_00000004.safetensors"}


def test_previews_show_prompts_seeds_and_scales(base, train):
    made = train(base, target_steps=1, preview_every=1, preview_steps=1, preview_prompt="a\nb",
                 preview_scales="0, 1 2", preview_count=3)
    size = Image.open(made.folder.previews / "step_00000001.jpg").size
    assert size == (3 * 64, 3 * preview.CAPTION + 6 * 64)


def test_a_deleted_run_folder_runs_again(base, train, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    before = GCFGTrainConceptModel.fingerprint_inputs(run_name="discs")
    train(base, output=str(tmp_path / "output" / "concept_models"))
    assert GCFGTrainConceptModel.fingerprint_inputs(run_name="discs") != before


def test_the_precision_of_an_autoencoder_counts(tmp_path, folder):
    class Counting(Vae):
        calls = 0

        def __init__(self, dtype):
            self.vae_dtype = dtype

        def encode(self, pixels):
            Counting.calls += 1
            return super().encode(pixels)
    for dtype, calls in ((torch.float16, 24), (torch.float32, 48), (torch.float16, 48)):
        images.prepare(dataset.Source(str(folder), 64), Counting(dtype), tmp_path / "latents")
        assert Counting.calls == calls


def test_masks_beside_pictures_count(base, train, folder, tmp_path):
    plain = train(base, held_out=0, output=str(tmp_path / "plain"))
    for picture in folder.glob("*.png"):
        Image.new("L", (64, 64), 255).save(picture.with_suffix(".mask.png"))
    white = train(base, held_out=0, output=str(tmp_path / "white"))
    for picture in folder.glob("*.mask.png"):
        Image.linear_gradient("L").resize((64, 64)).save(picture)
    graded = train(base, held_out=0, output=str(tmp_path / "graded"))
    losses = [float(made.history[-1, 1]) for made in (plain, white, graded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[2] != pytest.approx(losses[0], rel=1e-3)
