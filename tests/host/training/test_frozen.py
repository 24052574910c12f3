"""The frozen base of a LoRA stays as it was loaded: half precision, float8, the host's quantized forms."""

from dataclasses import replace

import pytest
import torch

from gcfg_pack.gcfg.host.training.models import empty_prompt, frozen, network, trainable
from gcfg_pack.gcfg.host.training.train import _notes
from gcfg_pack.gcfg.training.memory import Plan
from gcfg_pack.gcfg.training.run import continuation
from gcfg_pack.gcfg.training.settings import Settings
from harness.models.families import FAMILIES, available
from harness.models.quantized import FAMILY, SUPPORTED, quantized
from harness.training import Vae

NAMES = ["Stable Diffusion 3.5", "Flux.1", "Z-Image", "Wan 2.1 text to video"]
LORA = Settings(method="LoRA", rank=2)


def gradients(form, shape):
    """Output, gradients to the pairs, and the bytes of the network's matrices, with pairs that are not zero."""
    for name, parameter in form.parameters.items():
        if name.endswith("/up"):
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    x = torch.randn((2, *shape, 8, 8), generator=torch.Generator().manual_seed(2))
    predict = getattr(form, "predicted", None) or form.null_text
    output = predict(x, torch.tensor([0.3, 0.8]))
    output.square().mean().backward()
    return output.detach(), {name: p.grad for name, p in form.parameters.items() if p.grad is not None}


def compare(form_of, kept, exact, shape):
    """A LoRA on a base as loaded computes what it computes on the same weights in float32."""
    with torch.inference_mode(False), torch.enable_grad(), network.differentiable():
        small, whole = form_of(kept), form_of(exact)
        (output, found), (expected, wanted) = gradients(small, shape), gradients(whole, shape)
    assert torch.allclose(output, expected, atol=1e-5) and found.keys() == wanted.keys() and len(found) > 8
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5 * max(1.0, float(wanted[name].abs().max())))
               for name in found)
    return small


def in_float32(make, base):
    exact = make()
    own = {key: value.float() for key, value in base.model.diffusion_model.state_dict().items()}
    exact.model.diffusion_model.load_state_dict(own)
    return exact


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", NAMES)
def test_transformers(name, dtype, checkpointing):
    if name not in available():
        pytest.skip(f"this ComfyUI has no {name}")
    family = FAMILIES[name]
    base = family.model(1, dtype)

    def form_of(model):
        plan = Plan(checkpointing=checkpointing)
        return empty_prompt.EmptyPrompt(model, family.conditioning(0), LORA, plan, torch.device("cpu"))
    frames = (1,) if base.get_model_object("latent_format").latent_dimensions == 3 else ()
    small = compare(form_of, base, in_float32(lambda: family.model(1), base), (family.latent[0], *frames))
    held = [layer.weight.dtype for layer in small.network.modules() if isinstance(layer, frozen.Linear)]
    assert held.count(dtype) > 0.9 * len(held)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_null_text(tiny, dtype):
    base = tiny.sd15(seed=1, dtype=dtype)
    features = {name: 0.1 * torch.ones(1, 1, block.attn2.to_out[0].out_features) for name, block in
                trainable.cross_attention_blocks(base.model.diffusion_model).items()}

    def form_of(model, settings=LORA):
        return trainable.Trainable(model, features, tiny.conditioning(1), settings, Plan(), torch.device("cpu"))
    small = compare(form_of, base, in_float32(lambda: tiny.sd15(seed=1), base), (4,))
    kinds = {type(layer).__name__ for layer in small.network.modules() if getattr(layer, "convert", None)}
    assert kinds == {"Linear", "Conv2d"}
    with torch.inference_mode(False), torch.enable_grad():
        full = form_of(base, replace(LORA, method="full"))
    assert {p.dtype for p in full.parameters.values()} == {torch.float32}


@pytest.mark.skipif(not SUPPORTED, reason="this ComfyUI loads no quantized layers")
@pytest.mark.parametrize("format_name", ["float8_e4m3fn", "int8_tensorwise", "nvfp4"])
def test_quantized(format_name):
    from comfy.quant_ops import QuantizedTensor

    base, exact = quantized(format_name)
    with torch.inference_mode():
        before = base.model.diffusion_model.state_dict()

    def form_of(model):
        return empty_prompt.EmptyPrompt(model, FAMILY.conditioning(0), LORA, Plan(), torch.device("cpu"))
    small = compare(form_of, base, exact, (FAMILY.latent[0], 1))  # one frame
    held = [layer for layer in small.network.modules() if isinstance(getattr(layer, "weight", None), QuantizedTensor)]
    assert len(held) == 3 * FAMILY.unet["num_layers"]
    now = base.model.diffusion_model.state_dict()
    assert all(torch.equal(before[key].reshape(-1).view(torch.uint8), now[key].reshape(-1).view(torch.uint8))
               for key in before)

    class Images:
        vae = Vae()
    ours, theirs = (_notes(model, Images, FAMILY.conditioning(0)) for model in (base, exact))
    continuation.check_inputs(ours, theirs, "discs")  # a sketch of what the weights stand for


def test_patches_of_the_base_count(tiny):
    import comfy.lora

    base = tiny.sd15(seed=1, dtype=torch.float16)
    names = comfy.lora.model_lora_keys_unet(base.model, {})
    tuned = base.clone()
    tuned.add_patches(comfy.lora.load_lora(tiny.lora(base), names), 1.0)
    with torch.inference_mode(False):
        kept = network.Network(tuned, Plan(), torch.device("cpu"), updated=False)
        merged = network.Network(tuned, Plan(), torch.device("cpu"))
    for (name, ours), theirs in zip(kept.network.named_parameters(), merged.network.parameters(), strict=True):
        assert torch.equal(ours.float(), theirs), name


def test_what_exceeds_the_gpu_waits_elsewhere():
    """By numbers alone: layers of the first blocks lie on the device (here one without memory), the others do not."""
    family = FAMILIES["Flux.1"]
    base = family.model(1, torch.bfloat16)
    stored, meta = frozen.stored(base), torch.device("meta")

    def kept(resident, dtype):
        model = network.Network(base, Plan(precision="bfloat16"), torch.device("cpu"), updated=False).network
        names = frozen.keep(model, base, stored, dtype, meta, resident)
        return names, [model.get_parameter(name) for name in model.state_dict() if name in names]
    names, weights = kept(None, torch.float32)
    size = sum(weight.nbytes for weight in weights)
    assert all(weight.is_meta for weight in weights) and len(names) > 20
    assert kept(None, torch.bfloat16) == (set(), []) == kept(size, torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        again, weights = kept(size // 2, dtype)
        assert again == names
        there = sum(weight.nbytes for weight in weights if weight.is_meta)
        assert size // 3 < there <= size // 2
        assert sorted(weights, key=lambda weight: not weight.is_meta)[0] is weights[0]


@pytest.mark.parametrize("resident", [0, 20_000])
def test_layers_that_wait_compute_the_same(resident):
    family = FAMILIES["Flux.1"]
    base = family.model(1)

    def form_of(plan):
        return empty_prompt.EmptyPrompt(base, family.conditioning(0), LORA, plan, torch.device("cpu"))
    compare(form_of, Plan(resident=resident, checkpointing=True), Plan(), family.latent[:1])
