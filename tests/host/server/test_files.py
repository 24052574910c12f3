"""The tiny files are files of the kinds that the stock loaders load, and stay tiny."""

import comfy.controlnet
import comfy.sample
import comfy.sd
import comfy.utils
import pytest
import torch

from harness.models import files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return folder, files.write_models(folder)


def test_sizes(models):
    folder, _ = models
    sizes = {path.name: path.stat().st_size / 2**20 for path in folder.rglob("*.*")}
    assert len(sizes) == 6
    assert max(sizes.values()) < 16, sizes


def test_seeded():
    first, again, other = (files.unet(seed)["middle_block.0.in_layers.2.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_stock_loaders_load_everything_and_everything_has_an_effect(models):
    folder, names = models
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(folder / "checkpoints" / names.checkpoint))[:3]
    concept = comfy.sd.load_diffusion_model(str(folder / "diffusion_models" / names.unet))
    weights = comfy.utils.load_torch_file(str(folder / "loras" / names.lora))
    styled, _ = comfy.sd.load_lora_for_models(model, clip, weights, 1.0, 1.0)
    control = comfy.controlnet.load_controlnet(str(folder / "controlnet" / names.controlnet))
    control = control.copy().set_cond_hint(torch.rand((1, 3, 64, 64)), 1.0, (0.0, 1.0))
    prompt, other, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", "two dogs", ""))
    controlled = [[prompt[0][0], prompt[0][1] | {"control": control, "control_apply_to_uncond": True}]]

    def sample(model, positive):
        latent = torch.zeros((1, 4, 8, 8))
        noise = comfy.sample.prepare_noise(latent, 1)
        return comfy.sample.sample(
            model, noise, 4, 4.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=1
        )

    plain = sample(model, prompt)
    assert plain.std() < 40
    changed = sample(model, other), sample(concept, prompt), sample(styled, prompt), sample(model, controlled)
    for latent in changed:
        assert torch.isfinite(latent).all()
        assert (latent - plain).std() > 0.01 * plain.std()
    image = vae.decode(plain)
    assert image.shape == (1, 64, 64, 3)
    assert 0.02 < image.std() and 0.2 < image.mean() < 0.8
    assert vae.encode(image).std() < 20
