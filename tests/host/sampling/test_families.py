"""Every family of the host at a tiny size: sampler, guider and patch are right, on one copy of the weights; adapters
go through files; training learns.
"""

from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import pytest
import torch

from gcfg_pack.gcfg.host.concepts import concept as concepts
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.gcfg.host.training.models import empty_prompt, network
from gcfg_pack.gcfg.nulltext.formats.adapter import Adapter
from gcfg_pack.gcfg.training.memory import Plan
from gcfg_pack.gcfg.training.settings import Settings
from harness.models.concepts import written
from harness.models.families import FAMILIES, available
from harness.models.weights import generator
from harness.sampling import gcfg, relative, stock, through_guider

STEPS, SEED, CONTROL, CONCEPT = 2, 5, 2.5, 1.5
SHARED = {"scheduler": "simple", "steps": STEPS}


@pytest.fixture(params=list(FAMILIES))
def family(request):
    if request.param not in available():
        pytest.skip(f"this ComfyUI has no {request.param}")
    return FAMILIES[request.param]


def lora(model, seed=3, rank=2):
    """A LoRA file on every linear and convolution layer of a network."""
    file = {}
    for name, module in model.model.diffusion_model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d):
            continue
        weight = module.weight
        gen = generator(seed, name)
        up = torch.randn((weight.shape[0], rank, *(1,) * (weight.ndim - 2)), generator=gen)
        down = torch.randn((rank, *weight.shape[1:]), generator=gen)
        scale = 0.2 / down[0].numel() ** 0.5
        file |= {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down * scale}
    return file


def with_lora(model, seed=3):
    return comfy.sd.load_lora_for_models(model, None, lora(model, seed), 1.0, 0.0)[0]


@contextmanager
def networks_called(*patchers):
    """Counts forward passes by network, copies of it included."""
    counts, handles = Counter(), []

    def note(module, *_):
        counts[id(module)] += 1
    for patcher in patchers:
        handles.append(patcher.model.diffusion_model.register_forward_hook(note))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def flat(latent):
    """A latent as one tensor, picture and sound behind each other."""
    return comfy.utils.pack_latents(latent.unbind())[0] if latent.is_nested else latent


def denoised(patcher, conditioning, noise, latent, shapes, seed):
    """What one model predicts under one conditioning, in forward passes of its own."""
    conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
    options = {"transformer_options": dict(patcher.model_options["transformer_options"])}
    model, conds, _ = comfy.sampler_helpers.prepare_sampling(patcher, noise.shape, conds, options)
    patcher.pre_run()
    model.latent_shapes = shapes
    more = {"latent_shapes": shapes} if shapes is not None else {}
    conds = comfy.samplers.process_conds(model, noise, conds, patcher.load_device, latent, seed=seed, **more)

    def predict(x, sigma):
        sigmas = torch.full((x.shape[0],), float(sigma))
        return comfy.samplers.calc_cond_batch(model, [conds["positive"]], x, sigmas, options)[0]
    return predict


def by_hand(base, concept, positive, negative, latent):
    """The paper's equation over Euler steps, one prediction at a time."""
    empty = comfy.sample.fix_empty_latent_channels(base, latent["samples"])
    noise = comfy.sample.prepare_noise(empty, SEED)
    shapes = [part.shape for part in empty.unbind()] if empty.is_nested else None
    if empty.is_nested:
        noise, _ = comfy.utils.pack_latents(noise.unbind())
        empty, _ = comfy.utils.pack_latents(empty.unbind())
    elif hasattr(comfy.utils, "pack_latents"):
        shapes = [empty.shape]
    sigmas = comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "simple", STEPS)
    model, sampling = base.model, base.get_model_object("model_sampling")
    null, prompt, other = (denoised(m, c, noise, empty, shapes, SEED)
                           for m, c in ((base, negative), (base, positive), (concept, negative)))
    whole = comfy.samplers.Sampler().max_denoise(SimpleNamespace(inner_model=model), sigmas)
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), max_denoise=whole)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        d_0 = null(x, sigma)
        d = d_0 + CONTROL * (prompt(x, sigma) - d_0) + CONCEPT * (other(x, sigma) - d_0)
        x = x + (x - d) / sigma * (following - sigma)
    out = sampling.inverse_noise_scaling(sigmas[-1], x)
    return model.process_latent_out(out)


@torch.inference_mode()
def test_equals_a_hand_written_loop(family):
    base, concept, latent = family.model(1), family.model(2), family.latents()
    positive, negative = family.conditioning(1), family.conditioning(2)
    result = gcfg(base, positive, negative, latent, concept, CONCEPT, CONTROL, **SHARED)
    guided = through_guider(base, positive, negative, latent, [Link(model=concept, scale=CONCEPT)], CONTROL, **SHARED)
    patched = stock(apply(base, [Link(model=concept, scale=CONCEPT)]), positive, negative, latent, CONTROL, **SHARED)
    expected = by_hand(base, concept, positive, negative, latent)
    for made in map(flat, (result, guided, patched)):
        assert relative(made, flat(expected)) < 2e-4
    assert relative(flat(result), flat(stock(base, positive, negative, latent, CONTROL, **SHARED))) > 0.01


@torch.inference_mode()
def test_one_copy_equals_two(family):
    base, latent = family.model(1), family.latents(1 if family.passes == 3 else 2)
    positive, negative = family.conditioning(1), family.conditioning(2)
    clone, apart = with_lora(base), with_lora(family.model(1))
    with networks_called(base) as calls:
        result = flat(gcfg(base, positive, negative, latent, clone, CONCEPT, CONTROL, **SHARED))
    assert calls.keys() == {id(base.model.diffusion_model)}  # no copy has run
    assert calls.total() == family.passes * STEPS
    expected = flat(gcfg(base, positive, negative, latent, apart, CONCEPT, CONTROL, **SHARED))
    assert relative(result, expected) < 1e-3
    assert relative(result, flat(stock(base, positive, negative, latent, CONTROL, **SHARED))) > 0.01


@pytest.mark.parametrize("name", ["Flux.1", "Z-Image", "Wan 2.1 text to video", "LTX-Video"])
@torch.inference_mode()
def test_texts_of_other_lengths_share_the_weights(name):
    """They cannot share a batch there: more calls, no second copy."""
    if name not in available():
        pytest.skip(f"this ComfyUI has no {name}")
    family = FAMILIES[name]
    base, latent = family.model(1), family.latents()
    positive, negative, other = family.conditioning(1, 5), family.conditioning(2, 8), family.conditioning(3, 11)

    def sampled(one, two):
        return gcfg(one, positive, negative, latent, links=[Link(model=two, conditioning=other, scale=CONCEPT)],
                    control_scale=CONTROL, **SHARED)
    with networks_called(base) as calls:
        result = sampled(base, with_lora(base))
    assert calls.keys() == {id(base.model.diffusion_model)} and calls.total() > STEPS
    assert relative(result, sampled(family.model(1), with_lora(family.model(1)))) < 1e-3


@torch.inference_mode()
def test_adapters_are_saved_and_loaded(family, tmp_path):
    """In the pack's own form and as a LoRA for the stock loader."""
    base, latent = family.model(1), family.latents()
    positive, negative = family.conditioning(1), family.conditioning(2)
    file = lora(base)
    pairs = {}
    for layer in {key.removeprefix("diffusion_model.").rpartition(".lora_")[0] for key in file}:
        up, down = (file[f"diffusion_model.{layer}.lora_{part}.weight"] for part in ("up", "down"))
        pairs[layer] = up.flatten(1), down
    adapted = concepts.apply_adapter(base, Adapter(pairs))
    own, _ = concepts.load(base, written(tmp_path / "own.safetensors", adapted))
    tensors = comfy.utils.load_torch_file(written(tmp_path / "stock.safetensors", adapted, form="stock LoRA"))
    loaded = comfy.sd.load_lora_for_models(base, None, tensors, 1.0, 0.0)[0]
    expected = stock(with_lora(base), positive, negative, latent, CONTROL, **SHARED)
    for model in (own, loaded):
        assert relative(flat(stock(model, positive, negative, latent, CONTROL, **SHARED)), flat(expected)) < 1e-4
    assert relative(flat(expected), flat(stock(base, positive, negative, latent, CONTROL, **SHARED))) > 0.01


def test_training_learns(family):
    """A LoRA under the empty prompt: a prediction moves to where it is led, and the file gives that prediction."""
    base, empty = family.model(1), family.conditioning(0)
    gen = torch.Generator().manual_seed(2)
    size = (1, *(family.latent[0] if isinstance(family.latent[0], tuple) else family.latent))  # a picture, no sound
    if base.get_model_object("latent_format").latent_dimensions > len(size) - 2:
        size = (*size[:2], 1, *size[2:])  # a still, as the host's sampler makes it for networks of videos
    x, target = (torch.randn(size, generator=gen) for _ in range(2))
    sigma = torch.tensor([0.5])
    with torch.inference_mode(False), torch.enable_grad(), network.differentiable():
        form = empty_prompt.EmptyPrompt(base, empty, Settings(method="LoRA", rank=2), Plan(checkpointing=False),
                                        torch.device("cpu"))
        before = form.predicted(x, sigma).detach()
        target = before + 0.3 * before.std() * target
        optimizer, losses = torch.optim.Adam(form.parameters.values(), lr=5e-3), []
        for _ in range(6):
            losses.append((form.predicted(x, sigma) - target).square().mean())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        after = form.predicted(x, sigma).detach()
        trained = form.lora(form.parameters)
    assert losses[-1] < 0.99 * losses[0]
    made = comfy.sd.load_lora_for_models(base, None, trained, 1.0, 0.0)[0]
    with torch.inference_mode(), network.differentiable():
        again = empty_prompt.EmptyPrompt(made, empty, Settings(method="LoRA", rank=2), Plan(checkpointing=False),
                                         torch.device("cpu")).predicted(x, sigma)
    assert relative(again, after) < 1e-3 < relative(before, after)
