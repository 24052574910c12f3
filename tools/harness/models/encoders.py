"""Genuine text encoder files of the transformer families, as the host's CLIPLoader and DualCLIPLoader take them.

The host builds each at one size, whatever a file holds: T5-XXL and UMT5-XXL 24 layers of width 4096, Qwen3 4B 36 of
2560, Qwen2.5-VL 7B 28 of 3584. So a file with fewer layers saves neither time nor memory, and leaves the rest without
values. These have all of them, in float8 and as overlapping views: some 20 to 60 MB on disk, 4 to 8 GB in memory and
minutes of work for a prompt on two cores.

Import it only where the host is on ``sys.path``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import comfy.ops
import comfy.text_encoders.llama as llama
import comfy.text_encoders.t5 as t5
import sentencepiece
import torch

from . import shapes
from .files import overlapping

FLOAT8 = torch.float8_e4m3fn
CLIP_L = "tiny_clip_l_alone.ckpt"
NAMES = {"flux": (CLIP_L, "tiny_t5xxl.ckpt"), "wan": ("tiny_umt5xxl.ckpt",),
         "qwen_image": ("tiny_qwen_2.5_vl_7b.ckpt",), "z_image": ("tiny_qwen_3_4b.ckpt",)}
"""By family, the files that its workflow loads, in the order of the loader's inputs."""


def write(base: Path, family: str, seed: int = 0) -> tuple[str, ...]:
    """Write the text encoders of a family into ``models/text_encoders`` below a base folder; their names."""
    folder = base / "models" / "text_encoders"
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES[family]:
        if name == CLIP_L:
            content = {key.removeprefix("transformer."): t for key, t in overlapping(shapes.clip_l(), seed).items()}
        else:
            content = _in_float8(overlapping(network(family), seed))
        if family == "wan":
            content["spiece_model"] = tokenizer()
        torch.save(content, folder / name)
    return NAMES[family]


def network(family: str) -> shapes.Shapes:
    """Names and shapes of the language model of a family."""
    with torch.device("meta"):
        if family in ("flux", "wan"):
            config = "t5_config_xxl.json" if family == "flux" else "umt5_config_xxl.json"
            made = t5.T5(json.loads(Path(t5.__file__).with_name(config).read_text()), torch.float16, "meta",
                         comfy.ops.disable_weight_init)
        else:
            kind = llama.Qwen3_4B if family == "z_image" else llama.Qwen25_7BVLI
            made = kind({}, torch.float16, "meta", comfy.ops.disable_weight_init)
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items() if not name.startswith("visual.")}


def tokenizer() -> torch.Tensor:
    """A small tokenizer of UMT5's kind, which lies in the encoder's file: bytes of a sentencepiece model."""
    model, letters = io.BytesIO(), "abcdefghijklmnopqrstuvwxyz"
    words = [f"{a}{b} {b}{a}" for a in letters for b in letters]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=120, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def _in_float8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same views of the same buffers, in float8."""
    buffers: dict[int, torch.Tensor] = {}
    made = {}
    for name, tensor in weights.items():
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in buffers:
            buffers[memory.data_ptr()] = torch.tensor([], dtype=tensor.dtype).set_(memory).to(FLOAT8)
        made[name] = buffers[memory.data_ptr()].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return made
