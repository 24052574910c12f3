"""A folder of pictures as latents of the host's autoencoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...nulltext.provenance import fingerprint
from ...training import data


@dataclass(frozen=True, eq=False)
class ConceptImages:
    """Socket type GCFG_IMAGES: the pictures of a concept, their latents on disk, and the autoencoder of both."""

    source: data.Source
    latents: data.Latents
    vae: object


def prepare(source: data.Source, vae, folder: str | Path | None = None,
            progress: Callable[[int, int], None] = lambda done, total: None) -> ConceptImages:
    """Encode what is not on disk yet.

    Args:
        source: the pictures.
        vae: the host's VAE.
        folder: where latents are kept; below the host's output folder if None.
        progress: called with (files done, files in all).
    """
    if source.resolution % 64:
        raise ValueError(f"resolution is {source.resolution}; it must be a multiple of 64.")

    def encode(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return vae.encode(pictures)

    def watched(done: int, total: int) -> None:
        progress(done, total)
        comfy.model_management.throw_exception_if_processing_interrupted()
    place = folder or Path(folder_paths.get_output_directory()) / "concept_latents"
    return ConceptImages(source, data.cache(source, place, fingerprint(vae.get_sd()), encode, watched), vae)


def listing(folder: str) -> str:
    """Changes when a file of the folder does."""
    root, digest = Path(folder).expanduser(), hashlib.sha256(folder.encode())
    if folder.strip() and root.is_dir():
        for path in sorted(root.rglob("*")):
            if path.is_file():
                state = path.stat()
                digest.update(repr((str(path), state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()
