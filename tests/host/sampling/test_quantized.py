"""Adapters on rows of a quantized model: exact on top of its weights, which nobody quantizes again."""

import comfy.model_management
import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.host.weights.rows import row_adapter
from harness.models.quantized import FAMILY, LAYERS, SUPPORTED, quantized
from harness.models.weights import generator
from harness.sampling import counted, gcfg, relative

if not SUPPORTED:
    pytest.skip("this ComfyUI loads no quantized layers", allow_module_level=True)
from comfy.quant_ops import QuantizedTensor

SHARED = {"scheduler": "simple", "steps": 2}


def lora(model, extra=()):
    file = {}
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith(LAYERS):
            gen, out, into = generator(3, name), module.out_features, module.in_features
            file[f"diffusion_model.{name}.lora_up.weight"] = torch.randn((out, 2), generator=gen)
            file[f"diffusion_model.{name}.lora_down.weight"] = 0.1 * torch.randn((2, into), generator=gen)
            if "dora" in extra:
                file[f"diffusion_model.{name}.dora_scale"] = 1.0 + 0.2 * torch.randn((out, 1), generator=gen)
    return comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)[0]


@torch.inference_mode()
@pytest.mark.parametrize("extra", [(), ("dora",)])
@pytest.mark.parametrize("format_name", ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "nvfp4", "mxfp8"])
def test_rows_equal_the_dequantized_reference(format_name, extra, monkeypatch):
    packed, exact = quantized(format_name)
    positive, negative, latent = FAMILY.conditioning(1), FAMILY.conditioning(2), FAMILY.latents()
    held = [m for m in packed.model.modules() if isinstance(getattr(m, "weight", None), QuantizedTensor)]
    assert len(held) == len(LAYERS) * FAMILY.unet["num_layers"]
    monkeypatch.setattr(QuantizedTensor, "requantize_from_float", lambda *a, **k: pytest.fail("quantized again"))
    clone = lora(packed, extra)
    assert row_adapter(clone, packed).layers
    with counted(packed) as calls:
        result = gcfg(packed, positive, negative, latent, clone, **SHARED)
    assert calls == [(0, 3)] * 2
    expected = gcfg(exact, positive, negative, latent, lora(exact, extra), **SHARED)
    plain, plain_exact = (gcfg(m, positive, negative, latent, **SHARED) for m in (packed, exact))
    # what is rounded counts by its coefficients: 4 + 2.5 + 2.5 against 1.5 + 2.5
    assert relative(result, expected) < max(1e-3, 9 / 4 * relative(plain, plain_exact))
    assert relative(result, plain) > 0.1
    if format_name != "int8_tensorwise":  # its kernel rounds the activations, too
        assert relative(plain, plain_exact) < 1e-3
