"""Where concept files live, and how a concept MODEL becomes one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import folder_paths
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nulltext.formats import checkpoint, stock_lora
from ...nulltext.formats.adapter import difference
from ...nulltext.formats.checkpoint import PICKLES, SAFETENSORS
from ...nulltext.formats.identify import Kind, identify, is_unet, stock_from_null_text
from ...nulltext.formats.keymap import diffusers_names, feature_blocks, null_text_shapes, rename
from ...nulltext.tokens import COUNTS, projections
from .building import architecture, originals, weights
from .concept import CONCEPT, Concept, stated

FOLDER = "concept_models"
FORMATS = ("concept", "stock UNet", "stock LoRA")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def register_folder() -> None:
    """Make ``models/concept_models`` and ``output/concept_models`` known to the host, beside configured folders."""
    folders = [os.path.join(folder_paths.models_dir, FOLDER), os.path.join(folder_paths.get_output_directory(), FOLDER)]
    with contextlib.suppress(OSError):  # models may be on a read-only drive
        os.makedirs(folders[0], exist_ok=True)
    for folder in folders:
        folder_paths.add_model_folder_path(FOLDER, folder)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(SAFETENSORS + PICKLES))


def names() -> list[str]:
    """The files to choose from: concept models first, then diffusion models."""
    found = [name for folder in (FOLDER, "diffusion_models") for name in folder_paths.get_filename_list(folder)]
    return [name for name in dict.fromkeys(found) if Path(name).suffix.lower() in SAFETENSORS + PICKLES]


def find(name: str) -> str:
    """The path of a listed file; CheckpointError if it is gone."""
    for folder in (FOLDER, "diffusion_models"):
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return path
    raise checkpoint.CheckpointError(f"{name}: there is no such file in models/{FOLDER} or models/diffusion_models; "
                                     "refresh the list (press R) and choose again.")


def roots() -> list[str]:
    """All folders that hold models, in which the target of a link may lie."""
    configured = [path for paths, *_ in folder_paths.folder_names_and_paths.values() for path in paths]
    return [folder_paths.models_dir, *configured]


def fingerprint(name: str) -> tuple:
    """Changes when the file changes, so that the host loads it again."""
    try:
        state = os.stat(find(name))
    except (OSError, checkpoint.CheckpointError):
        return (name,)
    return name, state.st_mtime_ns, state.st_size


def save(patcher: ModelPatcher, prefix: str, dtype: str = "fp16", form: str = "concept",
         base: ModelPatcher | None = None) -> str:
    """Write a concept MODEL below the host's output folder; the path of the new file.

    Args:
        patcher: any MODEL; those of this pack say what they are.
        prefix: file name with folders, as in the host's save nodes; a number is appended.
        dtype: a key of ``DTYPES``.
        form: one of ``FORMATS``.
        base: the model that the concept was made from, for a LoRA of a concept that is not an adapter.
    """
    tensors, metadata = content(patcher, dtype, form, base)
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    checkpoint.write(path, tensors, metadata)
    return str(path)


def content(patcher: ModelPatcher, dtype: str = "fp16", form: str = "concept", base: ModelPatcher | None = None
            ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file that ``save`` writes.

    Raises:
        ValueError: patches that the form cannot hold, a missing base, or weights too large for the type.
    """
    concept = patcher.attachments.get(CONCEPT) or Concept(Kind.FULL)
    provenance = concept.provenance
    if concept.adapter is not None and form != "stock UNet":
        tensors = _adapter(patcher, concept, form)
    elif form == "stock LoRA":
        tensors = _difference(patcher, base)
        made_by = provenance.made_by or "difference of two MODELs"
        provenance = stated(base, made_by, provenance.residual, provenance.notes)
    else:
        tensors = _unet(patcher, form)
    tensors, kind = _cast(tensors, DTYPES[dtype]), identify(tensors)
    kind = Kind.FULL if kind is Kind.OTHER_MODEL else kind  # a whole transformer
    if kind is Kind.FULL and not provenance.made_by:
        provenance = stated(patcher, "saved from a MODEL")
    return tensors, provenance.to_metadata(kind.name.lower())


def _adapter(patcher: ModelPatcher, concept: Concept, form: str) -> dict[str, Tensor]:
    """An adapter as its own kind of file or as a LoRA, at strength 1."""
    if patcher.patches_uuid != concept.patches_uuid:
        raise ValueError("the concept model has further patches (a LoRA) on top of its adapter, which this format "
                         "cannot hold; save as stock UNet, or connect the model from before them.")
    if form == "concept":
        return concept.adapter.to_tensors()
    return stock_lora.to_stock_lora(concept.adapter, originals(patcher))


def _difference(patcher: ModelPatcher, base: ModelPatcher | None) -> dict[str, Tensor]:
    """All differences from the base as a LoRA."""
    if base is None:
        raise ValueError("a stock LoRA holds the difference from the base model; connect the model that the concept "
                         "was made from to 'base_model'.")
    plain, ours = weights(base), weights(patcher)
    if projections(ours):
        raise ValueError("the concept model's keys and values of the text are constants, which a LoRA cannot hold; "
                         "save as concept, or connect the fine-tuned model from before Convert to Null-Text Model.")
    expected = null_text_shapes(architecture(base)) if feature_blocks(ours) else architecture(base)
    if {key: tuple(value.shape) for key, value in ours.items()} != expected:
        raise ValueError("the base model is of another architecture than the concept model; connect the model that the "
                         "concept was made from to 'base_model'.")
    return stock_lora.to_stock_lora(difference(plain, ours), plain)


def _unet(patcher: ModelPatcher, form: str) -> dict[str, Tensor]:
    """All weights with their patches: under diffusers' names, or as a stock UNet with the host's markers."""
    tensors = weights(patcher)
    if projections(tensors) and form != "concept":
        raise ValueError("the concept model's keys and values of the text are constants, which the stock network does "
                         "not have; save as concept.")
    if form == "concept":
        return rename(tensors, diffusers_names(tensors)) if is_unet(tensors) else tensors
    config = patcher.model.model_config
    if feature_blocks(tensors):
        tensors = stock_from_null_text(tensors, config.unet_config["context_dim"])
    if patcher.model.model_type is ModelType.V_PREDICTION:  # as the host's own save nodes mark it
        tensors["v_pred"] = torch.tensor([])
        if config.sampling_settings.get("zsnr"):
            tensors["ztsnr"] = torch.tensor([])
    return tensors


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in the type of the file; biases of a switched-off cross-attention and counts keep float32."""
    cast = {key: tensor if key.endswith(("attn2.to_out.0.diff_b", COUNTS)) else tensor.to("cpu", dtype)
            for key, tensor in tensors.items()}
    broken = [key for key, tensor in cast.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"'{broken[0]}' has values that are not finite in {str(dtype).removeprefix('torch.')}; save "
                         "as bf16 or fp32, or use an earlier checkpoint if the training diverged.")
    return cast
