"""A subject as files that the host reads by itself: an embedding for its word, a LoRA for its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....nulltext.formats import checkpoint
from ....nulltext.formats.checkpoint import CheckpointError
from ....nulltext.formats.provenance import Provenance
from ....training.subject_settings import check_word
from ...concepts.concept import UNET, stated, weights

ENDINGS = ("", ".safetensors", ".pt", ".bin")
"""Under which the host finds an embedding."""
RUN = "gcfg.run"
"""Metadata: the folder of the run that has made a file, and may write it again."""
OFFICIAL = "pytorch_custom_diffusion_weights"
_OFFICIAL = ".processor.{}_custom_diffusion.weight"


def embedding_path(name: str) -> Path:
    """Where the embedding of a new word is written."""
    return Path(folder_paths.get_folder_paths("embeddings")[0]) / f"{name}.safetensors"


def lora_path(name: str) -> Path:
    """Where the LoRA of a subject is written."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / f"{name}.safetensors"


def check_free(name: str, run: str) -> None:
    """Refuse a name whose files exist, unless this very run has made them (ValueError).

    Args:
        run: the identity of the run; empty for one that has not begun.
    """
    taken = [Path(folder) / (name + ending) for folder in folder_paths.get_folder_paths("embeddings")
             for ending in ENDINGS] + [lora_path(name)]
    for path in taken:
        if path.is_file() and not (run and _run_of(path) == run):
            raise ValueError(f"there is a file '{path.name}' in {path.parent} already; nothing is overwritten, so "
                             "choose another name.")


def _identity_of(imported: Path) -> str:
    """The identity of an import: of its folder, which itself is nobody's business who is given the files."""
    return hashlib.sha256(str(imported.resolve()).encode()).hexdigest()


def _run_of(path: Path) -> str:
    """The identity of the run that has made a file, empty if it is none of ours."""
    if path.suffix not in checkpoint.SAFETENSORS:
        return ""
    try:
        return checkpoint.read(path)[1].get(RUN, "")
    except CheckpointError:
        return ""


def write(name: str, rows: Mapping[str, Tensor], lora: Mapping[str, Tensor], source: Provenance, run: str) -> None:
    """Write both files, each in one step; without rows only the LoRA, without a LoRA only the embedding.

    Args:
        rows: by encoder ("l", "g"), (n, C).
        lora: tensors of the host's LoRA format.
        source: what the files say about themselves.
        run: identity of the run that makes them.
    """
    check_free(name, run)
    embedding = {f"clip_{encoder}": row.detach().cpu().float() for encoder, row in rows.items()}
    if embedding:
        checkpoint.write(embedding_path(name), embedding, source.to_metadata("embedding") | {RUN: run})
    if lora:
        checkpoint.write(lora_path(name), lora, source.to_metadata("subject_lora") | {RUN: run})


def read_rows(name: str) -> dict[str, Tensor]:
    """The rows (n, C) of an embedding file of the host's folders by encoder; CheckpointError if it is not usable."""
    for folder in folder_paths.get_folder_paths("embeddings"):
        for ending in ENDINGS[1:]:
            path = Path(folder) / (name + ending)
            if path.is_file():
                tensors, _ = checkpoint.read(path)
                found = {key.removeprefix("clip_"): value.float().reshape(-1, value.shape[-1])
                         for key, value in tensors.items() if key.startswith("clip_")}
                if not found:
                    raise CheckpointError(f"{path.name}: this embedding does not say for which text encoder it is.")
                return found
    raise CheckpointError(f"there is no embedding '{name}' in models/embeddings; give its file name without the "
                          "ending.")


def from_official(tensors: Mapping[str, Tensor], base: ModelPatcher, name: str = "the file") -> dict[str, Tensor]:
    """The host's LoRA tensors of an official ClassDiffusion or Custom Diffusion file.

    Its keys are ``<diffusers block>.attn2.processor.to_k_custom_diffusion.weight``, its values whole weights.

    Raises:
        CheckpointError: another kind of file, or one for another architecture.
    """
    names = comfy.utils.unet_to_diffusers(base.model.model_config.unet_config)
    found, plain = {}, weights(base)
    for key, value in tensors.items():
        part = next((p for p in ("to_k", "to_v") if key.endswith(_OFFICIAL.format(p))), None)
        if part is None:
            if "custom_diffusion" in key or not key.startswith("<"):
                raise CheckpointError(f"{name}: '{key}' is no key or value of a cross-attention; this is no file of "
                                      "ClassDiffusion or Custom Diffusion that can be used.")
            continue
        ours = names.get(f"{key.removesuffix(_OFFICIAL.format(part))}.{part}.weight")
        if ours is None or plain[ours].shape != value.shape:
            raise CheckpointError(f"{name}: the base model has no '{key}' of this size; the file was made for another "
                                  "architecture.")
        found[f"{UNET}{ours.removesuffix('.weight')}.diff"] = value.float() - plain[ours].float()
    if not found:
        raise CheckpointError(f"{name}: this holds no keys and values of a cross-attention.")
    return found


def import_official(folder: str | Path, name: str, base: ModelPatcher) -> tuple[dict[str, Tensor], list[str]]:
    """Write the host's files of a folder of official ones; the LoRA's tensors, and the prompts of the new words.

    Args:
        folder: holds ``pytorch_custom_diffusion_weights.bin`` or ``.safetensors``, and a ``<new1>.bin`` a word.
        name: of the LoRA, and of the word; several words get their own behind it ("name_new1").

    Raises:
        ValueError: a folder without such files, files for another architecture, or names that are taken.
    """
    check_word(name)
    root = Path(folder).expanduser()
    found = sorted(root.glob(f"{OFFICIAL}.*"))
    words = sorted(root.glob("<*>.bin")) if found else []
    if not found or not words:
        raise ValueError(f"'{folder}' holds no {OFFICIAL}.bin or .safetensors beside a '<new1>.bin'; give the output "
                         "folder of an official ClassDiffusion or Custom Diffusion run.")
    lora = from_official(checkpoint.read(found[0])[0], base, found[0].name)
    rows = {}
    for path in words:
        (row,) = checkpoint.read(path)[0].values()
        rows[name if len(words) == 1 else f"{name}_{re.sub('[^A-Za-z0-9_]', '', path.stem)}"] = row.reshape(1, -1)
    source, run = stated(base, f"imported from {found[0].name}"), _identity_of(root)
    for word in (name, *rows):
        check_free(word, run)
    for number, (word, row) in enumerate(rows.items()):
        write(word, {"l": row}, lora if not number and word == name else {}, source, run)
    if name not in rows:
        checkpoint.write(lora_path(name), lora, source.to_metadata("subject_lora") | {RUN: run})
    return lora, [f"embedding:{word}" for word in rows]
