"""Runs in the host: they learn, go on to the bit, and leave the base as it was."""

import gc

import comfy.model_management
import pytest
import torch

from gcfg_pack.gcfg.host.concepts import concept
from gcfg_pack.gcfg.host.training import images
from gcfg_pack.gcfg.host.training import train as training
from gcfg_pack.gcfg.host.training.models import trainable
from gcfg_pack.gcfg.training.data import dataset
from gcfg_pack.gcfg.training.memory import Plan
from gcfg_pack.gcfg.training.run import state
from gcfg_pack.gcfg.training.run.task import Watch
from gcfg_pack.gcfg.training.settings import Settings
from harness.models.concepts import same, weights_of
from harness.sampling import gcfg
from harness.training import Clip, Vae, draw_pictures

QUICK = {"run_name": "discs", "target_steps": 6, "batch": 4, "learning_rate": 1e-3, "preview_every": 0, "save_every": 2,
         "held_out_every": 0, "ema_decay": 0.9}


class Stop(Watch):
    """Interrupts after a number of steps, as the host does: inside a run that is asked between steps."""

    def __init__(self, step):
        self.step, self.at, self.shown = step, 0, []

    def interrupted(self):
        return self.at >= self.step

    def progress(self, step, steps, loss):
        self.at = step

    def show(self, step, steps, picture):
        self.shown.append((step, picture.size))


@pytest.fixture
def pictures(tmp_path):
    folder = draw_pictures(tmp_path / "pictures")
    return images.prepare(dataset.Source(str(folder), 64), Vae(), tmp_path / "latents")


@pytest.fixture
def train(pictures, tmp_path):
    """train(base, watch, **settings), within inference mode as the host runs nodes."""
    def run(base, watch=None, clip=None, name="a", **changes):
        settings = Settings(**QUICK | {"output": str(tmp_path / name)} | changes)
        with torch.inference_mode():
            return training.train(base, clip or Clip(), pictures, settings, watch or Watch())
    return run


def concept_latents(pictures, base):
    stacked = torch.stack([latent.load(False) for latent in pictures.latents.found])
    return base.get_model_object("latent_format").process_in(stacked)


def test_learns_the_concept_and_leaves_the_base_alone(train, pictures, tiny):
    base = tiny.sd15(seed=1, prediction="v")  # which so small a network learns faster than eps
    before = {key: value.clone() for key, value in weights_of(base).items()}
    text, empty = tiny.conditioning(1), Clip().encode_from_tokens_scheduled("")
    plain = gcfg(base, text, empty, tiny.latent())
    made = train(base, target_steps=50, learning_rate=3e-3, held_out_every=25, batch=8)
    held_out = made.history[:, 2][~made.history[:, 2].isnan()]
    assert held_out[-1] < 0.3 * held_out[0]
    assert same(weights_of(base), before) and torch.equal(gcfg(base, text, empty, tiny.latent()), plain)
    mean = concept_latents(pictures, base).mean(0, keepdim=True)
    distances = []
    for scale in (0.0, 0.5, 1.0):
        latents = gcfg(base, text, empty, tiny.latent(4), concept=made.model, concept_scale=scale, control_scale=0.0,
                       steps=12)
        distances.append(float((base.get_model_object("latent_format").process_in(latents) - mean).square().mean()))
    assert distances[2] < 0.7 * distances[1] and distances[1] < 0.7 * distances[0]


@pytest.mark.parametrize("method", ["full", "LoRA"])
def test_interrupted_run_goes_on_to_the_bit(base, train, method):
    whole = train(base, method=method, name="whole")
    stopped = train(base, Stop(3), method=method, name="parts")
    assert stopped.step == 3
    last = train(base, method=method, name="parts")
    assert last.step == 6 and torch.equal(whole.history.nan_to_num(), last.history.nan_to_num())
    assert whole.folder.table.read_text() == last.folder.table.read_text()
    ours, theirs = (state.latest(run.folder.states).tensors() for run in (whole, last))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k].nan_to_num(), theirs[k].nan_to_num()) for k in ours)


@pytest.mark.parametrize("method", ["full", "LoRA"])
def test_exported_file_is_the_trained_model(base, train, tiny, method):
    made = train(base, method=method, target_steps=3, learning_rate=1e-2)
    text, empty = tiny.conditioning(1), tiny.conditioning(2)
    expected = gcfg(base, text, empty, tiny.latent(), concept=made.model)
    names = {"discs.safetensors"} | ({"discs_stock_lora.safetensors"} if method == "LoRA" else set())
    assert {path.name for path in made.folder.path.glob("*.safetensors")} == names
    for name in names:
        loaded, description = concept.load(base, str(made.folder.path / name))
        assert (gcfg(base, text, empty, tiny.latent(), concept=loaded) - expected).abs().max() < 1e-4
        assert "trained: 3 steps on 27 pictures" in description
    assert "discs.safetensors" in (made.folder.path / "README.md").read_text()


@pytest.mark.parametrize("family, options, clip", [
    ("sd15", {"prediction": "v"}, {}), ("sd15", {"prediction": "flow"}, {}), ("sd15", {"dtype": torch.float16}, {}),
    ("sdxl", {}, {"width": 2048, "pooled": 1280})])
def test_every_class_and_parameterisation(tiny, train, family, options, clip):
    base = getattr(tiny, family)(seed=1, **options)
    made = train(base, clip=Clip(**clip), target_steps=2, batch=2)
    losses = made.history[:, 1]
    assert torch.isfinite(losses).all() and losses.max() < 10
    assert made.model.model_dtype() == base.model_dtype()
    text, empty = (Clip(**clip).encode_from_tokens_scheduled(t) for t in ("a", ""))
    assert torch.isfinite(gcfg(base, text, empty, tiny.latent(), concept=made.model)).all()


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_untrained_network_is_the_converted_model(tiny, prediction):
    """The denoised prediction of the plain network equals that of the host's own network."""
    from gcfg_pack.gcfg.host.concepts import convert
    base, empty = tiny.sd15(seed=1, prediction=prediction), tiny.conditioning(3)
    features, _ = convert.null_text_features(base, empty, latents=1, size=8)
    host, _ = convert.convert(base, empty, latents=1, size=8)
    with torch.inference_mode(False):
        plain = trainable.Trainable(base, features, empty, Settings(), Plan(checkpointing=True), torch.device("cpu"))
        x, sigma = tiny.latent(2, seed=4)["samples"], torch.tensor([0.4, 0.8])
        with torch.no_grad():
            ours = plain.sampling.calculate_denoised(sigma, plain.null_text(x, sigma), x)
            theirs = host.model.apply_model(x, sigma)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_checkpointing_and_memory_presets(base, train):
    plain = train(base, name="plain", target_steps=2)
    saving = train(base, name="saving", target_steps=2, checkpointing="on")
    assert torch.allclose(plain.history[:, 1], saving.history[:, 1], rtol=1e-5)
    small = train(base, name="small", target_steps=2, memory="8 GB")
    assert torch.allclose(plain.history[:, 1], small.history[:, 1], rtol=0.05)
    newest = state.latest(small.folder.states)
    assert {p.dtype for p in newest.parameters.values()} == {torch.bfloat16}


def test_previews_by_gcfg(base, train):
    watch = Stop(99)
    made = train(base, watch, target_steps=4, preview_every=2, preview_steps=2, preview_prompt="a disc")
    assert watch.shown == [(2, (128, 160)), (4, (128, 160))]  # two scales, two seeds, two captions
    assert len(list(made.folder.previews.glob("*.jpg"))) == 2


def test_another_base_is_refused(base, train, tiny):
    train(base, target_steps=1)
    with pytest.raises(ValueError, match="begun on another base model"):
        train(tiny.sd15(seed=5), target_steps=2)


def test_inpainting_model_is_refused(train, tiny):
    with pytest.raises(ValueError, match="9 channels"):
        train(tiny.sd15(seed=5, channels=9))


def test_host_is_free_afterwards(base, train):
    train(base, target_steps=1)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not comfy.model_management.current_loaded_models
    assert not [thing for thing in gc.get_objects() if type(thing) is trainable.Trainable]
