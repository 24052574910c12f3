"""Adapters on rows of a GGUF model of ComfyUI-GGUF: exact on top of its weights, against what these stand for."""

import comfy.sd
import folder_paths
import pytest
import torch
from comfy.ldm.flux.model import FluxParams

from harness.models import tiny, transformers
from harness.models.weights import draw, generator
from harness.sampling import counted, gcfg, relative

gguf = pytest.importorskip("gguf", reason="the gguf package, which ComfyUI-GGUF needs, is not installed")

if "txt_ids_dims" not in FluxParams.__dataclass_fields__:
    pytest.skip("this host takes every Flux file for one of 3072 channels", allow_module_level=True)

PACK, FILES = "ComfyUI-GGUF", transformers.FAMILIES["flux"]
SHARED = {"scheduler": "simple", "steps": 2}
LAYERS = ("img_attn.qkv", "img_mlp.2", "linear2")


def weights():
    return {name: draw(name, shape, 1) for name, shape in transformers.network(FILES).items()}


def packed(name, tensor):
    """Whether a layer's weight is quantized, as the pack's converter does it."""
    return tensor.ndim == 2 and name.endswith(tuple(f"{layer}.weight" for layer in LAYERS))


def write(path, kind):
    """A GGUF file, and the weights that it stands for."""
    writer, meant = gguf.GGUFWriter(str(path), "flux"), {}
    for name, tensor in weights().items():
        if packed(name, tensor):
            data = gguf.quants.quantize(tensor.numpy(), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(data, kind))
        else:
            writer.add_tensor(name, tensor.numpy())
            meant[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def with_lora(model, dora):
    file = {}
    for name, tensor in weights().items():
        if packed(name, tensor):
            key, gen = f"diffusion_model.{name.removesuffix('.weight')}", generator(3, name)
            file[f"{key}.lora_up.weight"] = torch.randn((tensor.shape[0], 2), generator=gen)
            file[f"{key}.lora_down.weight"] = 0.1 * torch.randn((2, tensor.shape[1]), generator=gen)
            if dora:
                file[f"{key}.dora_scale"] = 1.0 + 0.2 * torch.randn((tensor.shape[0], 1), generator=gen)
    return comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)[0]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@torch.inference_mode()
def test_rows_equal_the_dequantized_reference(node, close, tmp_path, kind, dora):
    meant = write(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType[kind])
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path), is_default=True)
    model = node(PACK, "UnetLoaderGGUF", unet_name="tiny.gguf")[0]
    exact = comfy.sd.load_diffusion_model_state_dict({name: tensor.clone() for name, tensor in meant.items()})
    positive, negative = (tiny.conditioning(seed, 8, FILES.width, 1, FILES.pooled) for seed in (1, 2))
    latent = tiny.latent(channels=16)
    with counted(model) as calls:
        result = gcfg(model, positive, negative, latent, with_lora(model, dora), **SHARED)
    assert calls == [(0, 3)] * 2
    expected = gcfg(exact, positive, negative, latent, with_lora(exact, dora), **SHARED)
    plain = gcfg(model, positive, negative, latent, **SHARED)
    assert relative(plain, gcfg(exact, positive, negative, latent, **SHARED)) < 1e-3
    what = f"{'DoRA' if dora else 'LoRA'} on rows of {kind}"
    close(PACK, "Unet Loader (GGUF)", what, relative(result, expected), 1e-3)
    assert relative(result, plain) > 0.1
    on_the_base = gcfg(with_lora(model, dora), positive, negative, latent, model, **SHARED)
    assert relative(on_the_base, gcfg(with_lora(exact, dora), positive, negative, latent, exact, **SHARED)) < 1e-3
