"""A grid of runs: one progress bar with previews over all of them, and the labelled picture of their results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.utils import ProgressBar
from torch import Tensor

from ...guidance.sheet import sheet
from .. import KEY
from ..previews import picture_of, show_result

MOST_CELLS = 400


def parse_scales(text: str, name: str) -> list[float]:
    """Read ``"0, 1, 2.5"``.

    Raises:
        ValueError: no number, or something that is none.
    """
    entries = [entry for entry in text.replace(";", ",").replace("\n", ",").split(",") if entry.strip()]
    try:
        numbers = [float(entry) for entry in entries]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be numbers separated by commas, such as 0, 1, 2.5, not '{text}'.")
    return numbers


class GridProgress:
    """The progress of all cells in one bar, with the host's previews."""

    def __init__(self, model: ModelPatcher, cells: int):
        if cells > MOST_CELLS:
            raise ValueError(f"The grid has {cells} cells; at most {MOST_CELLS} are possible.")
        self.cells, self.bar = cells, ProgressBar(cells)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def watched(self, model: ModelPatcher, cell: int) -> ModelPatcher:
        """A clone whose sampling reports to this bar, as its cell number ``cell``."""
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._wrapper(cell))
        return clone

    def finish(self, images: Tensor) -> None:
        """Leave the finished grids (B, H, W, 3) on the node, where live previews are on."""
        if self.previewer is not None:
            show_result(self.bar, picture_of(images))

    def _wrapper(self, cell: int):
        def report(step, x0, x, total_steps):
            preview = (self.previewer.decode_latent_to_preview_image("JPEG", streams(x0)[0]) if self.previewer
                       else None)
            self.bar.update_absolute(cell * total_steps + step + 1, self.cells * total_steps, preview)

        def outer_sample(executor, noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs):
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, report, *args, **kwargs)
        return outer_sample


def streams(samples: Tensor) -> list[Tensor]:
    """The latents that are sampled together, as picture and sound: one, unless the host nests them."""
    return samples.unbind() if getattr(samples, "is_nested", False) else [samples]


def joined(cells: Sequence[dict]) -> dict:
    """The LATENTs of all cells as one batch, cell by cell."""
    samples = [cell["samples"] for cell in cells]
    whole = [torch.cat(parts) for parts in zip(*map(streams, samples), strict=True)]
    latent = {**cells[0], "samples": type(samples[0])(whole) if len(whole) > 1 else whole[0]}
    if "batch_index" in latent:
        latent["batch_index"] = [index for cell in cells for index in cell["batch_index"]]
    return latent


def decoded(vae, latent: dict, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """A labelled picture (B, H', W', 3) of a joined latent, one for each image of a cell; of videos the first frame."""
    samples = streams(latent["samples"])[0]
    frames = vae.decode(samples).flatten(0, -4)
    frames = frames[::len(frames) // len(samples)]
    batch = len(frames) // (len(rows) * len(columns))
    return torch.cat([sheet(frames[i::batch], rows, columns) for i in range(batch)])
