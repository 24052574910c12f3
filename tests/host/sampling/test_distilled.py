"""Distilled and few-step bases, on Flux with its embedded guidance: against Euler loops by hand at 4 and 8 steps."""

import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.guidance import Shaping
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.nodes.insight import GCFGPreset
from harness.models.families import FAMILIES
from harness.models.weights import generator
from harness.node import call
from harness.sampling import guided, relative

FLUX, SEED = FAMILIES["Flux.1"], 5


def with_nag(model):
    nag = pytest.importorskip("comfy_extras.nodes_nag", reason="this ComfyUI has no NAG")
    return call(nag.NAGuidance, model, 5.0, 0.5, 1.5)[0]


def with_lora(model):
    file = {}
    for name, layer in model.model.diffusion_model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            gen = generator(3, name)
            file[f"diffusion_model.{name}.lora_up.weight"] = torch.randn((layer.out_features, 2), generator=gen)
            file[f"diffusion_model.{name}.lora_down.weight"] = 0.05 * torch.randn((2, layer.in_features), generator=gen)
    return comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)[0]


class Model:
    """What a MODEL predicts for conditionings that share a batch, in passes of its own."""

    def __init__(self, patcher, conditionings, latent):
        conds = {str(n): comfy.sampler_helpers.convert_cond(c) for n, c in enumerate(conditionings)}
        self.options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
        self.model, conds, _ = comfy.sampler_helpers.prepare_sampling(patcher, latent.shape, conds, self.options)
        patcher.pre_run()
        conds = comfy.samplers.process_conds(self.model, latent, conds, patcher.load_device, latent, seed=SEED)
        self.conds = list(conds.values())

    def __call__(self, x, sigma):
        return comfy.samplers.calc_cond_batch(self.model, self.conds, x, torch.full((1,), float(sigma)), self.options)


def euler(base, guide, latent, steps):
    """Euler steps of a flow from all noise; ``guide(x, sigma)`` is the guided prediction."""
    x = comfy.sample.prepare_noise(latent, SEED)
    sigmas = comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "simple", steps)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (x - guide(x, sigma)) / sigma * (following - sigma)
    return base.model.process_latent_out(x)


@pytest.mark.parametrize("steps", [4, 8])
@torch.inference_mode()
def test_lora_guidance_beside_nag(steps):
    """D = N(c) + s (N_lora(c) - N(c)), N under NAG with the negative, which no guidance of its own uses."""
    positive, negative, latent = FLUX.conditioning(1), FLUX.conditioning(2), FLUX.latents()["samples"]
    base = with_nag(FLUX.model(1))
    chain = GCFGPreset.execute("LoRA guidance", 1.7, 0.0, 0.0, positive=positive, model_2=with_lora(base)).args[0]
    result = guided(Guider(base, negative, chain), {"samples": latent}, scheduler="simple", steps=steps)
    plain, tuned = (Model(m, [positive, negative], latent) for m in (with_nag(FLUX.model(1)),
                                                                     with_nag(with_lora(FLUX.model(1)))))

    def guide(x, sigma):
        d, d_lora = plain(x, sigma)[0], tuned(x, sigma)[0]
        return d + 1.7 * (d_lora - d)
    assert relative(result, euler(base, guide, latent, steps)) < 1e-3
    without = GCFGPreset.execute("LoRA guidance", 1.7, 0.0, 0.0, positive=positive,
                                 model_2=with_lora(FLUX.model(1))).args[0]
    assert relative(result, guided(Guider(FLUX.model(1), negative, without), {"samples": latent}, scheduler="simple",
                                   steps=steps)) > 0.01


@pytest.mark.parametrize("steps", [4, 8])
@torch.inference_mode()
def test_ratio_damping(steps):
    """RAAG (arXiv 2508.03442) on velocities: v = v_u + w (v_c - v_u), w = 1 + (w_max - 1) exp(-alpha rho)."""
    positive, negative, latent = FLUX.conditioning(1), FLUX.conditioning(2), FLUX.latents()["samples"]
    base, alpha, largest = FLUX.model(1), 4.0, 9.0
    link = Link(conditioning=positive, scale=largest, shaping=Shaping(ratio_damping=alpha))
    result = guided(Guider(base, negative, [link]), {"samples": latent}, scheduler="simple", steps=steps)
    prompt, null = (Model(FLUX.model(1), [c], latent) for c in (positive, negative))
    scales = []

    def guide(x, sigma):
        v_c, v_u = ((x - predict(x, sigma)[0]) / sigma for predict in (prompt, null))
        rho = torch.linalg.vector_norm(v_c - v_u) / torch.linalg.vector_norm(v_u)
        scales.append(float(1 + (largest - 1) * torch.exp(-alpha * rho)))
        return x - sigma * (v_u + scales[-1] * (v_c - v_u))
    assert relative(result, euler(base, guide, latent, steps)) < 1e-4
    assert all(1.0 < scale < 0.9 * largest for scale in scales) and max(scales) - min(scales) > 0.01
