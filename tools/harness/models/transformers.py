"""Model files of transformer families that the host's stock loaders load, as small as its detection allows.

What the host reads off a file's shapes is small here: Flux.1 and Wan 2.1 have one head. What it has fixed is as wide as
in the real models: Qwen-Image 3072 (one layer, 0.3e9 weights), Z-Image 3840 (one layer beside its refiners, 0.9e9) and
Wan's autoencoder; overlapping buffers keep these files small, memory and time are theirs. Text encoders have 4 to 8
billion weights whatever a file holds (see ``encoders``): in ordinary runs, what they would say comes from data sets of
the host (Load Training Dataset).

Import it only where the host is on ``sys.path``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.supported_models
import torch
from comfy.ldm.wan.vae import WanVAE
from safetensors.torch import save_file

from ..workflow import loads_a_checkpoint
from . import shapes
from .files import overlapping
from .tiny import as_known
from .weights import draw, generator

LORA_RANK = 2


@dataclass(frozen=True)
class Files:
    """Names of a family's files and data sets.

    Attributes:
        name: what the names of its real files begin with.
        config: the host's class in ``comfy.supported_models``.
        unet: what its detection makes of the file, as far as it is not the default.
        width, pooled: of the text; 0 for no pooled text.
        video_vae: the autoencoder is Wan's.
    """

    name: str
    config: str
    unet: Mapping
    width: int
    pooled: int = 0
    video_vae: bool = False

    @property
    def diffusion_model(self) -> str:
        return f"tiny_{self.name}.ckpt"

    @property
    def lora(self) -> str:
        return f"tiny_{self.name}_lora.safetensors"

    @property
    def vae(self) -> str:
        return "tiny_wan_vae.ckpt" if self.video_vae else "tiny_taesd_16.safetensors"

    def text(self, empty: bool) -> str:
        """The data set that stands for a prompt."""
        return f"tiny_{self.name}_{'null' if empty else 'prompt'}"


_FLUX = {"image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 1, "mlp_ratio": 4.0, "theta": 10000,
         "out_channels": 16, "qkv_bias": True, "in_channels": 16, "hidden_size": 128, "context_in_dim": 4096,
         "patch_size": 2, "vec_in_dim": 768, "depth": 1, "depth_single_blocks": 1, "guidance_embed": True,
         "txt_ids_dims": []}
_WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 128, "out_dim": 16, "num_heads": 1, "ffn_dim": 128,
        "num_layers": 1, "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True,
        "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16}
_QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 1}
_Z_IMAGE = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560,
            "n_layers": 1, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0,
            "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
FAMILIES = {files.name: files for files in (
    Files("flux", "Flux", _FLUX, 4096, 768), Files("wan", "WAN21_T2V", _WAN, 4096, video_vae=True),
    Files("qwen_image", "QwenImage", _QWEN, 3584, video_vae=True), Files("z_image", "ZImage", _Z_IMAGE, 2560))}


def write(base: Path, names=tuple(FAMILIES), seed: int = 0) -> None:
    """Write the files of the families that this host knows into ``models`` and ``datasets`` below a base folder."""
    for files in map(FAMILIES.get, names):
        if not hasattr(comfy.supported_models, files.config):
            continue
        table = network(files)
        _save(overlapping(table, seed), base / "models" / "diffusion_models" / files.diffusion_model)
        _save(_lora(table, seed + 1), base / "models" / "loras" / files.lora)
        for empty in (False, True):
            _save_text(files, empty, base / "datasets")
    _save(overlapping(autoencoder(), seed), base / "models" / "vae" / "tiny_wan_vae.ckpt")
    _save(_taesd(seed), base / "models" / "vae" / "tiny_taesd_16.safetensors")


def network(files: Files) -> shapes.Shapes:
    """Names and shapes of a family's network."""
    def build(unet: dict):
        config = getattr(comfy.supported_models, files.config)(unet)
        config.set_inference_dtype(torch.float16, None)
        return config.get_model({}, "", device="meta").diffusion_model
    return {name: tuple(tensor.shape) for name, tensor in as_known(build, files.unet).state_dict().items()}


def autoencoder(width: int = 96) -> shapes.Shapes:
    """Names and shapes of Wan's autoencoder; older hosts know one width only."""
    with torch.device("meta"):
        made = WanVAE(dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                      temperal_downsample=[False, True, True], dropout=0.0)
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}


def _taesd(seed: int) -> dict[str, torch.Tensor]:
    table = {name: (16, *shape[1:]) if name == "taesd_encoder.14.weight" else (shape[0], 16, *shape[2:])
             if name == "taesd_decoder.1.weight" else (16,) if name == "taesd_encoder.14.bias" else shape
             for name, shape in shapes.taesd().items()}
    return {name: draw(name, shape, seed).half() for name, shape in table.items()}


def _lora(table: shapes.Shapes, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA on the linear layers."""
    tensors = {}
    for name, shape in table.items():
        if name.endswith(".weight") and len(shape) == 2:
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_up.weight"] = draw(f"{key}.up", (shape[0], LORA_RANK), seed) * 0.3
            tensors[f"{key}.lora_down.weight"] = draw(f"{key}.down", (LORA_RANK, shape[1]), seed)
    return tensors


def _save_text(files: Files, empty: bool, datasets: Path) -> None:
    name = files.text(empty)
    text = torch.randn((1, 8, files.width), generator=generator(0, name))
    pooled = {"pooled_output": torch.randn((1, files.pooled), generator=generator(1, name))} if files.pooled else {}
    folder = datasets / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text('{"num_samples": 1}')
    torch.save({"latents": [{"samples": torch.zeros(1, 16, 8, 8)}], "conditioning": [[[text, pooled]]]},
               folder / "shard_0000.pkl")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def adapt(graph: dict, files: Files, encoders: Sequence[str] = ()) -> dict:
    """A workflow of a family on these files, small and short.

    Args:
        encoders: the files of its text encoders; its prompts come from data sets if there are none.
    """
    made = {}
    for key, node in graph.items():
        inputs = {name: [*value] if isinstance(value, list) else value for name, value in node["inputs"].items()}
        kind = node["class_type"]
        if kind in ("CLIPLoader", "DualCLIPLoader"):
            if not encoders:
                continue
            inputs |= zip([name for name in inputs if name.startswith("clip_name")], encoders, strict=True)
        if kind == "CLIPTextEncode" and not encoders:
            kind, inputs = "LoadTrainingDataset", {"folder_name": files.text(not inputs["text"])}
        for name, value in (("unet_name", files.diffusion_model), ("lora_name", files.lora), ("vae_name", files.vae)):
            if name in inputs:
                inputs[name] = value
        for name, value in (("width", 64), ("height", 64), ("length", 5), ("steps", 2)):
            if isinstance(inputs.get(name), int):
                inputs[name] = value
        made[key] = {"class_type": kind, "inputs": inputs}
    texts = {key for key, node in made.items() if node["class_type"] == "LoadTrainingDataset"}
    for node in made.values():
        for value in node["inputs"].values():
            if isinstance(value, list) and value[0] in texts:
                value[1] = 1  # the data set's conditionings come after its latents
    return made


def family_of(graph: dict) -> Files | None:
    """The family that a shipped workflow is for; None for those of checkpoints."""
    if loads_a_checkpoint(graph):
        return None
    (unet,) = (node["inputs"]["unet_name"] for node in graph.values() if node["class_type"] == "UNETLoader")
    return next(files for files in FAMILIES.values() if unet.startswith(files.name))
