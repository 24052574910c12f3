"""Transformers: a LoRA under the empty prompt learns, samples beside its base on one copy, and is a stock LoRA."""

import comfy.sd
import comfy.utils
import pytest
import torch
from torch.nn import functional as F

from gcfg_pack.gcfg.host import streams
from gcfg_pack.gcfg.host.training import images
from gcfg_pack.gcfg.host.training import train as training
from gcfg_pack.gcfg.host.training.models import empty_prompt, network
from gcfg_pack.gcfg.training.data import dataset
from gcfg_pack.gcfg.training.memory import Plan
from gcfg_pack.gcfg.training.run.task import Watch
from gcfg_pack.gcfg.training.settings import Settings, SettingsError
from harness.models.concepts import same, weights_of
from harness.models.families import FAMILIES, available
from harness.models.weights import generator
from harness.sampling import gcfg as sampled
from harness.training import draw_pictures

NAMES = ["Stable Diffusion 3.5", "Flux.1", "Qwen-Image", "Z-Image", "Wan 2.1 text to video"]
WITH_SOUND = ["LTX-2 (video and sound)", "MiniMax H3"]
WRITING = ["LTX-Video", *WITH_SOUND, "Ideogram 4", "Cosmos Predict2", "HunyuanVideo"]
"""Whose blocks write in place or go through fused kernels."""
QUICK = {"run_name": "discs", "method": "LoRA", "rank": 4, "batch": 4, "learning_rate": 3e-3, "preview_every": 0,
         "held_out_every": 6, "target_steps": 12, "ema": False, "timesteps": "logit-normal"}


class Vae:
    """An autoencoder that averages eight pixels into a cell, with a family's channels, one frame for a video model."""

    def __init__(self, channels, frames):
        self.channels, self.frames = channels, frames

    def get_sd(self):
        return {"kind": torch.zeros(1)}

    def encode(self, pixels):
        x = F.avg_pool2d(pixels.movedim(-1, 1), 8) * 4.0 - 2.0
        x = x.repeat(1, -(-self.channels // 3), 1, 1)[:, :self.channels]
        return x.unsqueeze(2) if self.frames else x

    def decode(self, latents):
        still = latents[:, :, 0] if latents.ndim == 5 else latents
        pixels = F.interpolate(still[:, :3].float(), scale_factor=8).movedim(1, -1)
        return pixels.unsqueeze(1) if latents.ndim == 5 else pixels


class Clip:
    def __init__(self, family):
        self.family = family

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return self.family.conditioning(sum(tokens.encode()))


@pytest.fixture(params=[*NAMES, *WITH_SOUND])
def family(request):
    if request.param not in available():
        pytest.skip(f"this ComfyUI has no {request.param}")
    return FAMILIES[request.param]


@pytest.fixture
def train(tmp_path, family):
    folder = draw_pictures(tmp_path / "pictures", 24)

    def run(base, **changes):
        kind = base.get_model_object("latent_format")
        vae = Vae(streams.picture_channels(kind), kind.latent_dimensions == 3)
        pictures = images.prepare(dataset.Source(str(folder), 64), vae, tmp_path / "latents")
        rate = {"learning_rate": 2e-2} if kind.latent_channels in (32, 128) else {}  # many channels are far to go
        settings = Settings(**QUICK | rate | {"output": str(tmp_path / "runs")} | changes)
        with torch.inference_mode():
            return training.train(base, Clip(family), pictures, settings, Watch())
    return run


def test_learns_goes_on_and_loads_as_a_stock_lora(family, train):
    base = family.model(1)
    before = {key: value.clone() for key, value in weights_of(base).items()}
    train(base, target_steps=5, checkpointing="on", save_every=5)
    made = train(base, preview_every=12, preview_steps=1, preview_prompt="a")
    held_out = made.history[:, 2][~made.history[:, 2].isnan()]
    assert held_out[-1] < 0.9 * held_out[0] and same(weights_of(base), before)
    assert len(list(made.folder.previews.iterdir())) == 1
    text, empty = family.conditioning(1), family.conditioning(0)

    def gcfg(*args, **kwargs):
        latent = sampled(*args, **kwargs)
        return latent.unbind()[0] if latent.is_nested else latent
    ours = gcfg(base, text, empty, family.latents(), concept=made.model, concept_scale=1.0)
    file = comfy.utils.load_torch_file(str(made.folder.path / "discs.safetensors"), safe_load=True)
    stock = comfy.sd.load_lora_for_models(base, None, file, 1.0, 0.0)[0]
    theirs = gcfg(base, text, empty, family.latents(), concept=stock, concept_scale=1.0)
    plain = gcfg(base, text, empty, family.latents(), concept=base, concept_scale=1.0)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, plain, atol=1e-3)


@pytest.mark.parametrize("name", [*NAMES, *WRITING])
def test_gradients_are_those_of_the_loss(name):
    """Against differences of the loss; recomputed blocks give the same; undistilled is as its formula says.

    What a network makes of the text alone, before the first block, is made once and not trained.
    """
    if name not in available():
        pytest.skip(f"this ComfyUI has no {name}")
    family = FAMILIES[name]
    base, empty = family.model(1), family.conditioning(0)

    def loss(checkpointing=False, undistill=0.0, strength=0.05, moved=None):
        with torch.inference_mode(False), torch.enable_grad(), network.differentiable():
            form = empty_prompt.EmptyPrompt(base, empty, Settings(method="LoRA", rank=2, undistill=undistill),
                                            Plan(checkpointing=checkpointing), torch.device("cpu"))
            for name, parameter in form.parameters.items():
                if name.endswith("/up"):
                    size = strength if moved is None or name in moved else 0.05
                    parameter.data = size * torch.randn(parameter.shape, generator=generator(1, name))
            shape = (2, streams.picture_channels(form.latent_format),
                     *((1,) if form.latent_format.latent_dimensions == 3 else ()), 8, 8)
            x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
            output = form.predicted(x, torch.tensor([0.3, 0.8]))
            if moved is None:
                output.square().mean().backward()
            return output.detach(), {name: p.grad for name, p in form.parameters.items() if p.grad is not None}
    plain, expected = loss()
    again, recomputed = loss(checkpointing=True)
    assert torch.allclose(plain, again, atol=1e-6) and expected.keys() == recomputed.keys() and len(expected) > 8
    assert all(torch.allclose(expected[name], recomputed[name], atol=1e-6) for name in expected)
    slope = sum((gradient * torch.randn(gradient.shape, generator=generator(1, name))).sum()
                for name, gradient in expected.items() if name.endswith("/up"))
    above, below = (loss(strength=0.05 + step, moved=expected)[0].double().square().mean() for step in (2e-4, -2e-4))
    assert abs((above - below) / 4e-4 - slope) < 0.02 * abs(slope)
    undistilled, _ = loss(undistill=4.0)
    base_output, _ = loss(strength=0.0, moved=expected)
    assert torch.allclose(undistilled, (plain + 3.0 * base_output) / 4.0, atol=1e-5)


def test_flux_reads_a_guidance_of_1():
    """Also where the conditioning says otherwise, as after FluxGuidance."""
    family, seen = FAMILIES["Flux.1"], []
    (features, extra), = family.conditioning(0)
    with torch.inference_mode(False):
        form = empty_prompt.EmptyPrompt(family.model(1), [[features, {**extra, "guidance": 3.5}]],
                                        Settings(method="LoRA", rank=1), Plan(), torch.device("cpu"))
        form.network.guidance_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        x = torch.randn(1, *family.latent[:1], 8, 8)
        form.predicted(x, torch.tensor([0.5]))
    from comfy.ldm.flux.layers import timestep_embedding
    assert len(seen) == 1 and torch.allclose(seen[0], timestep_embedding(torch.ones(1), 256), atol=1e-6)


def test_full_weights_are_refused(family, train):
    with pytest.raises(SettingsError, match="no null-text form .* choose the method LoRA"):
        train(family.model(1), method="full")
