"""Chains that begin with what other nodes have found: a picture's own noise, an identity by PhotoMaker."""

import comfy.samplers
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras import nodes_photomaker as photomaker
from nodes import CLIPTextEncode

from gcfg_pack.gcfg.host.recipes.methods import Sockets, chain_for
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from harness.models.text import clip
from harness.models.weights import draw
from harness.node import call
from harness.oracle import denoised, euler
from harness.sampling import gcfg, relative

CLOSE = 2e-4


def test_a_tuned_model_on_a_pictures_own_noise(tiny, base, prompts):
    """HiFi Tuner's noise (arXiv 2312.00079): a picture run back by stock nodes, then forth by a tuned model."""
    prompt, null = prompts

    def tuned(model, strength=1.0):
        return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, 3), strength, 0.0)[0]
    picture, method = tiny.latent(seed=4), comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "normal", 5)
    back = call(custom.FlipSigmas, sigmas)[0]
    (none,), (plain,) = call(custom.DisableNoise), call(custom.BasicGuider, base, null)
    noise = call(custom.SamplerCustomAdvanced, none, plain, method, back, picture)[0]
    guider = Guider(base, null, chain_for("personalization guidance",
                                          Sockets(prompt, None, base, tuned(base), 2.5, 0.0, 0.5)))
    result = call(custom.SamplerCustomAdvanced, none, guider, method, sigmas, noise)[0]["samples"]

    alone, own, half = tiny.sd15(1), tuned(tiny.sd15(1)), tuned(tiny.sd15(1), 0.5)
    x = base.model.process_latent_in(picture["samples"])
    for sigma, after in zip(back[:-1].tolist(), back[1:].tolist(), strict=True):
        x = x + (x - denoised(alone, x, null, sigma)) * ((after - sigma) / sigma)
    assert relative(noise["samples"], base.model.process_latent_out(x)) < CLOSE
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        reference = denoised(half, x, null, sigma)
        prediction = reference + 2.5 * (denoised(own, x, prompt, sigma) - reference)
        x = x + (x - prediction) * ((after - sigma) / sigma)
    assert relative(result, base.model.process_latent_out(x)) < CLOSE


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """The host's PhotoMaker with one layer, from a file, as its loader gives it."""
    small = photomaker.VISION_CONFIG_DICT | {"num_hidden_layers": 1, "intermediate_size": 64}
    monkeypatch.setattr(photomaker, "VISION_CONFIG_DICT", small)
    table = photomaker.PhotoMakerIDEncoder().state_dict()
    weights = {name: draw(name, tuple(tensor.shape), 0) if tensor.is_floating_point() else tensor
               for name, tensor in table.items()}
    torch.save({"id_encoder": weights}, tmp_path / "photomaker.bin")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "photomaker", ([str(tmp_path)], {".bin"}))
    return call(photomaker.PhotoMakerLoader, "photomaker.bin")[0]


def test_photomaker_refined_from_the_class(tiny, encoder):
    """PhotoMaker (arXiv 2312.04461): what its prompt adds to the class prompt; without the trigger it adds nothing."""
    with torch.inference_mode():
        text, base, face = clip("sdxl", seed=1), tiny.sdxl(seed=1), torch.rand(1, 80, 64, 3)
        person = call(photomaker.PhotoMakerEncode, encoder, face, text, "a man photomaker reading")[0]
        whole, null = (call(CLIPTextEncode, text, words)[0] for words in ("a man reading", ""))
        without = call(photomaker.PhotoMakerEncode, encoder, face, text, "a man reading")[0]
        result, twin, plain = (gcfg(base, whole, null, tiny.latent(), links=links) for links in (
            [refined(person, whole)], [refined(without, whole)], []))
        assert relative(twin, plain) < 2e-5 < 1e-3 < relative(result, plain)

        def step(x, sigma):
            d0, dc, own = (denoised(base, x, conditioning, sigma) for conditioning in (null, whole, person))
            return d0 + 2.5 * (dc - d0) + 1.5 * (own - dc)
        assert relative(result, euler(base, step, tiny.latent())) < CLOSE


def refined(person, whole):
    return Link(conditioning=person, scale=1.5, reference="custom", reference_conditioning=whole)
