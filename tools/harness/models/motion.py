"""A Stable Diffusion 1.5 UNet of true widths, and motion modules of AnimateDiff-Evolved for it, from a seed.

That pack writes the widths of the real UNet, 320 to 1280, into its motion modules, and places one after each of the
UNet's blocks. Attention to the text can be left out of most. The weights are views of a few buffers: in a file they are
small, in memory a UNet takes 2.4 GB and its motion modules 1.7 GB.
"""

from pathlib import Path

import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file

from . import tiny
from .files import ModelFiles, checkpoint, lora, overlapping
from .shapes import Shapes
from .weights import draw, pass_input_through, rewritten

_WIDTHS = (320, 640, 1280, 1280)
_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 2 + [0] * 6,
    "transformer_depth_output": [1] * 3 + [0] * 9, "transformer_depth_middle": -1, "context_dim": 768,
    "adm_in_channels": None, "use_linear_in_transformer": False,
}


def sd15(seed: int = 0, width: int = _WIDTHS[0]):
    """A ``ModelPatcher`` with the blocks of Stable Diffusion 1.5, attention to the text in the first level only."""
    return tiny.loaded(_config(width), unet(seed, width), torch.float32)


def unet(seed: int = 0, width: int = _WIDTHS[0]) -> dict[str, torch.Tensor]:
    """The weights of ``sd15``."""
    table = unet_shapes(width)
    weights = overlapping(table, seed)
    weights |= {name: draw(name, table[name], seed) for name in rewritten(table)}
    pass_input_through(weights)
    return weights


def unet_shapes(width: int = _WIDTHS[0]) -> Shapes:
    network = UNetModel(**_config(width).unet_config, device=torch.device("meta"))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _config(width: int):
    return comfy.supported_models.SD15(_UNET | {"model_channels": width})


def write_models(models: Path, seed: int = 0) -> ModelFiles:
    """Write a checkpoint of the UNet, a subject's LoRA on its keys and values, and a motion module below ``models``."""
    names = ModelFiles("wide_sd15.ckpt", "", "wide_subject.safetensors", "", motion="motion_v3.ckpt")
    places = [models / folder / name for folder, name in (
        ("checkpoints", names.checkpoint), ("loras", names.lora), ("animatediff_models", names.motion))]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint(seed, unet(seed)), places[0])
    subject = {name: tensor for name, tensor in lora(seed + 1, table=unet_shapes(), only=".attn2.to_").items()
               if "_to_k." in name or "_to_v." in name}
    save_file(subject, places[1])
    write_motion_module(places[2], seed=seed + 2)
    return names


def write_motion_module(path: Path, frames: int = 32, seed: int = 0, picture: bool = False) -> None:
    """Write a motion module for Stable Diffusion 1.5 as its authors publish it.

    Args:
        frames: the longest clip. It tells version 3 (32) from version 1 (24), under which the pack also normalises
            activations over all frames together.
        picture: as PIA, with a first convolution that sees a mask and a picture beside the latent.
    """
    shapes = _motion_shapes()
    if picture:
        shapes |= {"conv_in.weight": (_WIDTHS[0], 9, 3, 3), "conv_in.bias": (_WIDTHS[0],)}
    weights = overlapping(shapes, seed)
    if picture:
        weights["conv_in.weight"] = 30.0 * weights["conv_in.weight"]
    for name in [name for name in weights if name.endswith(".pe")]:
        weights[name] = draw(name, (1, frames, weights[name].shape[2]), seed)
    torch.save(weights, path)


def _motion_shapes() -> Shapes:
    """Two modules at each level on the way down, three on the way up; their positions (1, frames, width) last."""
    shapes: Shapes = {}
    for way, count, widths in (("down", 2, _WIDTHS), ("up", 3, _WIDTHS[::-1])):
        for level, width in enumerate(widths):
            for n in range(count):
                shapes |= _module(f"{way}_blocks.{level}.motion_modules.{n}.temporal_transformer", width)
    return shapes


def _module(name: str, width: int) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes: Shapes = {f"{block}.ff.net.0.proj.weight": (8 * width, width), f"{block}.ff.net.0.proj.bias": (8 * width,),
                      f"{block}.ff.net.2.weight": (width, 4 * width), f"{block}.ff.net.2.bias": (width,)}
    for k in (0, 1):
        attention = f"{block}.attention_blocks.{k}"
        shapes |= {f"{attention}.to_{kind}.weight": (width, width) for kind in "qkv"}
        shapes |= {f"{attention}.to_out.0.weight": (width, width), f"{attention}.to_out.0.bias": (width,)}
        shapes[f"{attention}.pos_encoder.pe"] = (1, 24, width)
    for layer in (f"{name}.proj_in", f"{name}.proj_out"):
        shapes |= {f"{layer}.weight": (width, width), f"{layer}.bias": (width,)}
    for layer in (f"{name}.norm", f"{block}.norms.0", f"{block}.norms.1", f"{block}.ff_norm"):
        shapes |= {f"{layer}.weight": (width,), f"{layer}.bias": (width,)}
    return shapes
