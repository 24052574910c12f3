"""A folder of pictures as latents of the host's autoencoder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...nulltext.formats.provenance import fingerprint
from ...training.data import dataset, pictures
from ..concepts import files as concept_files


@dataclass(frozen=True, eq=False)
class ConceptImages:
    """Socket type GCFG_IMAGES: the pictures of a concept, their latents on disk, and the autoencoder of both."""

    source: dataset.Source
    latents: dataset.Latents
    vae: object


def latents_folder(runs: Path) -> Path:
    """Where latents lie for runs in a folder: in the host ``output/concept_latents`` for ``output/concept_models``."""
    return (runs.parent if runs.name == concept_files.FOLDER else runs) / "concept_latents"


def prepare(source: dataset.Source, vae, folder: str | Path | None = None,
            progress: Callable[[int, int], None] = lambda done, total: None) -> ConceptImages:
    """Encode what is not on disk yet.

    Args:
        source: the pictures.
        vae: the host's VAE.
        folder: where latents are kept; in the host's output folder if None.
        progress: called with (files done, files in all).
    """
    if source.resolution % 64:
        raise ValueError(f"resolution is {source.resolution}; it must be a multiple of 64.")

    def encode(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            latents = vae.encode(pictures)
            return latents[:, :, 0] if latents.ndim == 5 else latents  # a video model's: one frame

    def watched(done: int, total: int) -> None:
        progress(done, total)
        comfy.model_management.throw_exception_if_processing_interrupted()
    place = folder or latents_folder(Path(folder_paths.get_output_directory()) / concept_files.FOLDER)
    autoencoder = f"{fingerprint(vae.get_sd())} {getattr(vae, 'vae_dtype', '')}"
    return ConceptImages(source, dataset.cache(source, place, autoencoder, encode, watched), vae)


def locate(folder: str, what: str = "the folder with the pictures of your concept") -> Path:
    """The absolute path of a folder that a node names; a relative one lies below the host's input folder.

    Args:
        what: which folder is wanted, for errors.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.strip():
        raise ValueError(f"no folder is named; give {what}.")
    path = (Path(folder_paths.get_input_directory()) / Path(folder.strip()).expanduser()).resolve()
    if not path.is_dir():
        raise ValueError(f"there is no folder '{path}'; give {what}: an absolute path on the machine "
                         "that runs ComfyUI, or one below its input folder.")
    return path


def listing(folder: str) -> str:
    """Changes when a file of the folder that a node names does."""
    digest = hashlib.sha256(folder.encode())
    with contextlib.suppress(ValueError, OSError):  # no folder, nothing in it, or a file that has just gone
        for path in pictures.files(locate(folder)):
            state = path.lstat() if path.is_symlink() and not path.exists() else path.stat()
            digest.update(repr((str(path), state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()
