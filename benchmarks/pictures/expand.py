"""``python -m benchmarks.pictures.expand <folder>``: the shipped narrow weights as genuine stock files.

Writes, below a folder laid out as ComfyUI's ``models``:

* ``checkpoints/gcfg_pictures_base.safetensors``: UNet, CLIP-L and TAESD, for Load Checkpoint.
* ``diffusion_models/gcfg_pictures_fine_tune.safetensors``: a UNet for Load Diffusion Model.
* ``diffusion_models/gcfg_pictures_concept.safetensors``: a null-text concept model for Load Concept Model.
* ``controlnet/gcfg_pictures_canny.safetensors``: a ControlNet for the base and Canny edges, for Load ControlNet Model.
* ``loras/gcfg_pictures_concept_lora.safetensors``: the concept as a LoRA on the base, for Load LoRA, at strength 1.
* ``loras/gcfg_pictures_glossy_lora.safetensors``: an ordinary LoRA with a trigger, "glossy face".

Every function of this file keeps what the model computes; only the size changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gcfg.nulltext.attention import FEATURE
from gcfg.nulltext.formats import checkpoint, keymap
from gcfg.nulltext.formats.adapter import Adapter
from gcfg.nulltext.formats.provenance import Provenance, architecture_hash, fingerprint
from gcfg.nulltext.formats.stock_lora import to_stock_lora

from . import shipped
from .labels import CHARACTERS
from .vae import Decoder, Encoder
from .words import CLIP_TOKENS, HIDDEN, LAYERS, WIDTH

TIMES = 2
"""The UNet's channels are written so often."""

HINT = "input_hint_block"
CLIP_WIDTH, CLIP_HIDDEN, CLIP_LAYERS = 768, 3072, 12
TAESD = 64
SD15_SCALE = 0.18215
FILES = {
    "base": "checkpoints/gcfg_pictures_base.safetensors",
    "fine_tune": "diffusion_models/gcfg_pictures_fine_tune.safetensors",
    "concept": "diffusion_models/gcfg_pictures_concept.safetensors",
    "control": "controlnet/gcfg_pictures_canny.safetensors",
    "lora": "loras/gcfg_pictures_concept_lora.safetensors",
    "trigger_lora": "loras/gcfg_pictures_glossy_lora.safetensors",
}
CHARACTER_FILES = {name: f"loras/gcfg_pictures_{name}.safetensors" for name in CHARACTERS}
"""Not shipped: ``benchmarks/subjects`` trains and writes them."""
CREDIT = ("Trained on emoji artwork, changed: Noto Emoji (Google, Apache-2.0), Twemoji (Twitter and contributors, "
          "CC-BY-4.0, https://github.com/jdecked/twemoji), Fluent Emoji (Microsoft, MIT).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder 'models' of a ComfyUI, or any other")
    parser.add_argument("--shipped", type=Path, default=shipped.MODELS, help="where the narrow weights are")
    settings = parser.parse_args()
    for path in expand(settings.folder, settings.shipped).values():
        print(path)


def expand(folder: Path, source: Path = shipped.MODELS, say: Callable[[str], None] = str) -> dict[str, Path]:
    """Write the files that ``source`` has the weights of, each in one step; their paths by name."""
    written = {}
    for name, file in (FILES | CHARACTER_FILES).items():
        if name != "base" and not (source / f"{name}.safetensors").is_file():
            continue
        tensors, metadata = contents(name, source)
        checkpoint.write(folder / file, tensors, metadata | {"credit": CREDIT})
        written[name] = folder / file
        say(f"wrote {file}")
    return written


def contents(name: str, source: Path = shipped.MODELS) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of one stock file."""
    base = shipped.unet("base", source)
    if name == "base":
        return shipped.half(whole(shipped.read("base", source))), {}
    if name == "fine_tune":
        return shipped.half(unet(shipped.unet("fine_tune", source))), {}
    if name == "control":
        return shipped.half(controlnet(shipped.unet("control", source))), {}
    wide = shipped.half(unet(base))
    provenance = Provenance("SD15", architecture_hash({key: tuple(value.shape) for key, value in wide.items()}),
                            fingerprint(wide), "trained by benchmarks/pictures")
    if name == "concept":
        tensors = shipped.half(unet(shipped.unet("concept", source)))
        return keymap.rename(tensors, keymap.diffusers_names(tensors)), provenance.to_metadata("null_text")
    tensors = to_stock_lora(adapter(shipped.read(name, source)), wide)
    tensors = {key: value.float() if key.endswith("diff_b") else value.half() for key, value in tensors.items()}
    return tensors, provenance.to_metadata("stock_lora") if name == "lora" else {}


def whole(narrow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A stock SD1.5 checkpoint of the tensors of ``base.safetensors``."""
    parts = {"model.diffusion_model.": unet(shipped.part(narrow, "unet.")),
             "cond_stage_model.transformer.text_model.": text_encoder(shipped.part(narrow, "text.")),
             "first_stage_model.": vae(shipped.part(narrow, "vae."))}
    return {prefix + key: value for prefix, tensors in parts.items() for key, value in tensors.items()}


def unet(narrow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every channel twice: sums over channels are halved, queries shrink as the width of a head doubles."""
    return {name: _unet_weight(name, weight.float()) for name, weight in narrow.items()}


def _unet_weight(name: str, weight: Tensor) -> Tensor:
    if name.endswith(FEATURE):
        return weight.repeat_interleave(TIMES, -1)
    if weight.ndim >= 2:
        weight = _inputs(name, weight)
    if name.endswith("to_q.weight"):
        weight = weight * TIMES**-0.5
    return weight if name.startswith("out.2.") else weight.repeat_interleave(TIMES, 0).contiguous()


def _inputs(name: str, weight: Tensor) -> Tensor:
    """The second dimension of a weight widened."""
    if name.startswith("input_blocks.0.0."):
        return weight
    if name.startswith("time_embed.0."):  # cos and sin of frequency j are those of frequency 2 j among twice as many
        wide = torch.zeros(weight.shape[0], weight.shape[1] * TIMES)
        wide[:, ::TIMES] = weight
        return wide
    if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):  # the features repeat: their first copy is read
        return torch.cat([weight, torch.zeros(weight.shape[0], CLIP_WIDTH - weight.shape[1])], 1)
    return weight.repeat_interleave(TIMES, 1) / TIMES


def controlnet(narrow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What reads the hint stays as it is, but for the convolution that leads to the UNet's channels."""
    hint = shipped.part(narrow, f"{HINT}.")
    wide = unet({name: weight for name, weight in narrow.items() if not name.startswith(f"{HINT}.")})
    last = str(max(int(name.split(".")[0]) for name in hint))
    return wide | {f"{HINT}.{name}": weight.repeat_interleave(TIMES, 0) if name.split(".")[0] == last else weight
                   for name, weight in hint.items()}


def adapter(narrow: Mapping[str, Tensor]) -> Adapter:
    """The low-rank pairs on the wide UNet: ``down`` reads, ``up`` writes the repeated channels."""
    pairs = {}
    for key, up in narrow.items():
        if not key.endswith("/up"):
            continue
        layer = key.removesuffix("/up")
        name = f"{layer}.weight"
        up = up * TIMES**-0.5 if layer.endswith("to_q") else up
        pairs[layer] = (up if layer == "out.2" else up.repeat_interleave(TIMES, 0),
                        _inputs(name, narrow[f"{layer}/down"]).contiguous())
    features = {key.removesuffix(f".attn2.{FEATURE}"): value.repeat_interleave(TIMES, -1)
                for key, value in narrow.items() if key.endswith(FEATURE)}
    return Adapter(pairs, {}, features)


def text_encoder(narrow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP-L: twelve copies of 64 channels side by side, weights read the first copy and write all."""
    copies = CLIP_WIDTH // WIDTH
    rows = torch.zeros(CLIP_TOKENS, dtype=torch.int64)
    rows[narrow["tokens"]] = torch.arange(1, len(narrow["tokens"]) + 1)
    wide = {"embeddings.token_embedding.weight": narrow["token_embedding"][rows].repeat(1, copies),
            "embeddings.position_embedding.weight": narrow["position_embedding"].repeat(1, copies),
            "final_layer_norm.weight": narrow["final_layer_norm.weight"].repeat(copies),
            "final_layer_norm.bias": narrow["final_layer_norm.bias"].repeat(copies)}
    for index in range(CLIP_LAYERS):
        layer = shipped.part(narrow, f"layers.{index}.") if index < LAYERS else None
        wide |= {f"encoder.layers.{index}.{key}": value for key, value in _clip_layer(layer, copies).items()}
    return wide


def _clip_layer(narrow: Mapping[str, Tensor] | None, copies: int) -> dict[str, Tensor]:
    """A wide layer; zero, which the residual passes over, for None."""
    sizes = {"self_attn.q_proj": (CLIP_WIDTH, CLIP_WIDTH), "self_attn.k_proj": (CLIP_WIDTH, CLIP_WIDTH),
             "self_attn.v_proj": (CLIP_WIDTH, CLIP_WIDTH), "self_attn.out_proj": (CLIP_WIDTH, CLIP_WIDTH),
             "mlp.fc1": (CLIP_HIDDEN, CLIP_WIDTH), "mlp.fc2": (CLIP_WIDTH, CLIP_HIDDEN)}
    wide = {}
    for name, (outputs, inputs) in sizes.items():
        weight, bias = torch.zeros(outputs, inputs), torch.zeros(outputs)
        if narrow is not None:
            times = 1 if name == "mlp.fc1" else copies
            read = HIDDEN if name == "mlp.fc2" else WIDTH
            filled = narrow[f"{name}.weight"].repeat(times, 1)
            weight[:len(filled), :read], bias[:len(filled)] = filled, narrow[f"{name}.bias"].repeat(times)
        wide[f"{name}.weight"], wide[f"{name}.bias"] = weight, bias
    for name, plain in (("layer_norm1", torch.ones), ("layer_norm2", torch.ones)):
        wide[f"{name}.weight"] = plain(CLIP_WIDTH) if narrow is None else narrow[f"{name}.weight"].repeat(copies)
        wide[f"{name}.bias"] = torch.zeros(CLIP_WIDTH) if narrow is None else narrow[f"{name}.bias"].repeat(copies)
    return wide


def vae(narrow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TAESD with all further channels zero; its first convolution passes RGB and a constant 1 on."""
    wide = {f"taesd_encoder.{key}": torch.zeros(shape) for key, shape in _taesd("encoder").items()}
    wide |= {f"taesd_decoder.{key}": torch.zeros(shape) for key, shape in _taesd("decoder").items()}
    for channel in range(3):
        wide["taesd_encoder.0.weight"][channel, channel, 1, 1] = 1
    wide["taesd_encoder.0.bias"][3] = 1
    for side, places in (("encoder", Encoder.PLACES), ("decoder", Decoder.PLACES)):
        for key, weight in shipped.part(narrow, f"{side}.layers.").items():
            index, _, rest = key.partition(".")
            corner = tuple(slice(0, size) for size in weight.shape)
            wide[f"taesd_{side}.{places[int(index)]}.{rest}"][corner] = weight
    return wide | {"vae_scale": torch.tensor(SD15_SCALE), "vae_shift": torch.tensor(0.0)}


def _taesd(side: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of TAESD's weights."""
    if side == "encoder":
        blocks, plain, first, last = (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), {0: 3, 2: TAESD, 6: TAESD, 10: TAESD}, 0, 14
    else:
        blocks, plain, first, last = (3, 4, 5, 8, 9, 10, 13, 14, 15, 18), {1: 4, 7: TAESD, 12: TAESD, 17: TAESD}, 1, 19
    shapes = {}
    for index, inputs in plain.items():
        shapes[f"{index}.weight"] = (TAESD, inputs, 3, 3)
        if index == first:
            shapes[f"{index}.bias"] = (TAESD,)
    for index in blocks:
        for step in (0, 2, 4):
            shapes[f"{index}.conv.{step}.weight"], shapes[f"{index}.conv.{step}.bias"] = (TAESD, TAESD, 3, 3), (TAESD,)
    outputs = 4 if side == "encoder" else 3
    return shapes | {f"{last}.weight": (outputs, TAESD, 3, 3), f"{last}.bias": (outputs,)}


if __name__ == "__main__":
    main()
