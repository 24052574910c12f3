"""Model files of ComfyUI's kind for diffusers, read without network and without trust.

``load`` is for small Stable Diffusion 1.5 class checkpoints whose autoencoder is a TAESD, such as those that come with
this project; a full-size checkpoint loads with ``StableDiffusionPipeline.from_single_file``. ``concept_unet`` reads
every form of concept model, of any size.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..nulltext.attention import empty_features, replace_cross_attention
from ..nulltext.formats import checkpoint, identify
from ..nulltext.formats.checkpoint import CheckpointError
from ..nulltext.formats.identify import Kind
from ..nulltext.formats.keymap import diffusers_names, null_text_shapes, rename

LATENT_SCALE = 0.18215
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
         "steps_offset": 1}
"""The noise schedule of Stable Diffusion 1.5; the last step leads to no noise at all, as in ComfyUI."""


def load(path: Path) -> StableDiffusionPipeline:
    """A text-to-image pipeline from a small checkpoint, in float32 on the CPU, with a DDIM scheduler.

    Raises:
        CheckpointError: no such file, a damaged one, or one without UNet, CLIP-L and TAESD.
        ImportError: the words of the tokenizer are missing (open_clip_torch).
    """
    tensors, _ = checkpoint.read(path)
    unet = identify.unet_part(tensors)
    parts = {name: _part(tensors, prefix) for name, prefix in (("text", "cond_stage_model.transformer."),
                                                              ("vae", "first_stage_model."))}
    if not identify.is_unet(unet) or not parts["text"] or "taesd_decoder.1.weight" not in parts["vae"]:
        raise CheckpointError(f"{Path(path).name} is no small checkpoint with UNet, CLIP-L and TAESD; load full-size "
                              "ones with StableDiffusionPipeline.from_single_file.")
    return StableDiffusionPipeline(
        vae=_autoencoder(parts["vae"]), text_encoder=_text_encoder(parts["text"]), tokenizer=_tokenizer(),
        unet=_unet(unet), scheduler=DDIMScheduler(**NOISE), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)


def concept_unet(path: Path, base: UNet2DConditionModel) -> UNet2DConditionModel:
    """A concept model as a UNet beside ``base``: null-text, stock or fully fine-tuned, in either naming of its weights.

    Raises:
        CheckpointError: another kind of file, or one that does not fit the base to the last key.
    """
    name = Path(path).name
    tensors, _ = checkpoint.read(path)
    kind = identify.identify(tensors)
    if kind not in (Kind.NULL_TEXT, Kind.STOCK_UNET, Kind.FULL):
        raise CheckpointError(f"{name} is {kind.value}; a concept model for a pipeline is a UNet.")
    weights = identify.unet_part(tensors)
    if "conv_in.weight" not in weights:
        weights = rename(weights, diffusers_names(weights))
    shapes = {key: tuple(value.shape) for key, value in base.state_dict().items()}
    identify.check_keys(weights, null_text_shapes(shapes) if kind is Kind.NULL_TEXT else shapes, name, kind)
    identify.check_values(weights, name)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(base.config)
        if kind is Kind.NULL_TEXT:
            replace_cross_attention(unet, empty_features(unet))
    unet = _filled(unet, weights).to(base.device)
    return unet if base.dtype == torch.float32 else unet.to(base.dtype)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _filled(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A module with these weights in float32 (each a copy: the files' tensors share memory), ready to predict."""
    weights = {key: value.float().clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    module.load_state_dict(weights, assign=True)
    return module.train(False).requires_grad_(False)


def _unet(weights: Mapping[str, Tensor]) -> UNet2DConditionModel:
    """The UNet of these weights; its architecture is read off their names and shapes."""
    if "conv_in.weight" not in weights:
        weights = rename(weights, diffusers_names(weights))
    levels = _count(weights, r"down_blocks\.(\d+)\.")
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=weights["conv_in.weight"].shape[1], out_channels=weights["conv_out.weight"].shape[0],
            block_out_channels=[len(weights[f"down_blocks.{i}.resnets.0.conv1.weight"]) for i in range(levels)],
            layers_per_block=_count(weights, r"down_blocks\.0\.resnets\.(\d+)\."),
            down_block_types=[_block(weights, f"down_blocks.{i}", "Down") for i in range(levels)],
            up_block_types=[_block(weights, f"up_blocks.{i}", "Up") for i in range(levels)],
            cross_attention_dim=next(v for k, v in weights.items() if k.endswith("attn2.to_k.weight")).shape[1],
            attention_head_dim=8)
    return _filled(unet, weights)


def _block(names: Mapping[str, Tensor], place: str, way: str) -> str:
    attends = any(key.startswith(f"{place}.attentions.") for key in names)
    return f"{'CrossAttn' if attends else ''}{way}Block2D"


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the names have at the place that the pattern captures."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})


def _text_encoder(weights: Mapping[str, Tensor]) -> CLIPTextModel:
    """CLIP-L as Stable Diffusion 1.5 reads it: the last layer, normalised."""
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
            bos_token_id=49406, eos_token_id=49407, pad_token_id=1))
    if not next(iter(model.state_dict())).startswith("text_model."):  # transformers 5
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    own = model.state_dict()
    for module in model.modules():  # buffers that no file holds
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.register_buffer("position_ids", torch.arange(77).expand(1, -1), persistent=False)
    return _filled(model, {key: value for key, value in weights.items() if key in own})


def _autoencoder(weights: Mapping[str, Tensor]) -> AutoencoderTiny:
    """TAESD; its decoder begins with a clamp that is a layer in ComfyUI's numbering and none in diffusers'."""
    renamed = {}
    for key, value in weights.items():
        match = re.fullmatch(r"taesd_(encoder|decoder)\.(\d+)\.(.+)", key)
        if match:
            side, place, rest = match[1], int(match[2]), match[3]
            renamed[f"{side}.layers.{place - (side == 'decoder')}.{rest}"] = value
    scale = float(weights.get("vae_scale", torch.tensor(LATENT_SCALE)))
    with torch.device("meta"):
        model = AutoencoderTiny(scaling_factor=LATENT_SCALE / scale)
    return _filled(model, renamed)


def _tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer from the merges that OpenAI published, which open_clip_torch carries: no network is asked."""
    try:
        place = metadata.distribution("open_clip_torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")
    except metadata.PackageNotFoundError as error:
        raise ImportError('CLIP\'s words are missing; install them with: pip install "gcfg[diffusers]"') from error
    with gzip.open(place, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1:49152 - 256 - 2 + 1]
    letters = [chr(code) for code in _printable()]
    words = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges),
             "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:  # every version of transformers reads these two files
        Path(folder, "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _printable() -> list[int]:
    """A visible character for every byte, in the order of CLIP's vocabulary (as GPT-2): those that have none follow."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*visible, *range(256, 256 + 256 - len(visible))]
