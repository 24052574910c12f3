"""Previews of a run: the base and the model in training, sampled together by GCFG from fixed seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import comfy.model_management
import comfy.sample
import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image, ImageDraw
from torch import Tensor

from ... import files
from ...training.run.folder import RunFolder
from ...training.run.task import Watch, is_out_of_memory
from ...training.settings import Settings
from ..previews import picture_of, show_result
from ..sampling.chain import Link
from ..sampling.patch import apply
from ..streams import empty_still
from .models.empty_prompt import EmptyPrompt
from .models.network import PIXELS
from .models.trainable import Trainable

CONTROL_SCALE = 2.5
"""Of a preview with a prompt: the default of KSampler (GCFG)."""
CAPTION = 16
"""Pixels of a line of text in a preview."""


class NodeWatch(Watch):
    """A run in a node: the host's interruption, its progress bar, its live preview."""

    def __init__(self, steps: int):
        self.bar, self.shown = comfy.utils.ProgressBar(steps), None

    def interrupted(self) -> bool:
        return comfy.model_management.processing_interrupted()

    def progress(self, step: int, steps: int, loss: float) -> None:
        self.bar.update_absolute(step, steps)

    def show(self, step: int, steps: int, picture: Image.Image) -> None:
        self.shown = picture
        self.bar.update_absolute(step, steps, ("JPEG", picture, 512))

    def finish(self, curve: Tensor) -> None:
        """Leave the curve (1, H, W, 3) of the run on the node, its newest preview above it."""
        picture = picture_of(curve)
        if self.shown is not None:
            above = self.shown.resize((picture.width, round(picture.width * self.shown.height / self.shown.width)))
            picture = picture.crop((0, -above.height, *picture.size))
            picture.paste(above)
        show_result(self.bar, picture)


class Preview(Watch):
    """Passes a run's news on, and makes its previews: a row for each prompt and seed, a column for each concept scale.

    Args:
        base, trainable: the two models.
        vae: the host's autoencoder.
        prompts: conditioning by prompt, with the empty prompt among them.
        settings, folder: of the run.
        watch: is asked for interruptions while sampling; gets ``show(step, steps, picture)`` if it has that.
    """

    def __init__(self, base: ModelPatcher, trainable: Trainable | EmptyPrompt, vae, prompts: Mapping[str, list],
                 settings: Settings, folder: RunFolder, watch: Watch):
        self.base, self.trainable, self.vae, self.prompts = base, trainable, vae, prompts
        self.settings, self.folder, self.watch = settings, folder, watch
        self.begins, self.interrupted, self.progress, self.tell = (
            watch.begins, watch.interrupted, watch.progress, watch.tell)

    def preview(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Sample, save and show; a run goes on if that fails, but an interruption ends it."""
        try:
            with torch.inference_mode():
                picture = self._picture(step, weights)
            with files.replacing(self.folder.previews / f"step_{step:08}.jpg", durable=False) as file:
                picture.save(file, format="JPEG", quality=90)
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:
            why = "no memory for it beside the training" if is_out_of_memory(error) else f"{error}"
            logging.warning("GCFG: no preview of step %d (%s: %s); the run goes on.", step, type(error).__name__, why)
            return
        finally:
            if not comfy.model_management.is_device_cpu(self.trainable.device):
                comfy.model_management.unload_all_models()
        if hasattr(self.watch, "show"):
            self.watch.show(step, self.settings.target_steps, picture)

    def _picture(self, step: int, weights: Mapping[str, Tensor]) -> Image.Image:
        concept, scales = self.trainable.concept(weights, ""), self.settings.concept_scales()
        rows = []
        for prompt in self.settings.prompts():
            columns = [self._sample(concept, prompt, scale) for scale in scales]
            rows += [(prompt, [column[k] for column in columns]) for k in range(self.settings.preview_count)]
        return sheet(rows, [f"concept {scale:g}" for scale in scales])

    def _sample(self, concept: ModelPatcher, prompt: str, scale: float) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 of one prompt at one concept scale, from the seeds of the run."""
        seeds = [self.settings.seed + k for k in range(self.settings.preview_count)]
        batches = [[seed] for seed in seeds] if self._several_streams else [seeds]  # such a network takes one row
        return np.concatenate([self._sample_seeds(concept, prompt, scale, batch) for batch in batches])

    def _sample_seeds(self, concept: ModelPatcher, prompt: str, scale: float, seeds: list[int]) -> np.ndarray:
        rows = [comfy.sample.prepare_noise(self._empty(1), seed) for seed in seeds]
        noise, latent = rows[0] if len(rows) == 1 else torch.cat(rows), self._empty(len(seeds))
        model = apply(self.base, [Link(model=concept, scale=scale, name="Concept")])
        samples = comfy.sample.sample(
            model, noise, self.settings.preview_steps, CONTROL_SCALE if prompt else 1.0, "dpmpp_2m", "sgm_uniform",
            self.prompts[prompt], self.prompts[""], latent, disable_pbar=True, seed=self.settings.seed,
            callback=self._ask)
        return self._decoded(samples)

    def _decoded(self, samples: Tensor) -> np.ndarray:
        pictures = samples.unbind()[0] if self._several_streams else samples
        pixels = self.vae.decode(pictures)[..., :3].clamp(0.0, 1.0)
        pixels = pixels.reshape(-1, *pixels.shape[-3:])  # a video model's one frame
        return (pixels * 255.0).round().to("cpu", torch.uint8).numpy()

    @property
    def _several_streams(self) -> bool:
        return len(empty_still(self.trainable.latent_format, (2, 2))) > 1

    def _empty(self, count: int) -> Tensor:
        """So many empty pictures, as the host's samplers take them."""
        kind = self.trainable.latent_format
        side = self.settings.resolution // getattr(kind, "spacial_downscale_ratio", PIXELS)
        streams = [stream.repeat(count, *(1,) * (stream.ndim - 1)) for stream in empty_still(kind, (side, side))]
        if len(streams) == 1:
            return streams[0]
        from comfy.nested_tensor import NestedTensor  # no host without it has such models

        return NestedTensor(streams)

    def _ask(self, *_) -> None:
        if self.watch.interrupted():
            raise comfy.model_management.InterruptProcessingException


def sheet(rows: list[tuple[str, list[np.ndarray]]], titles: list[str]) -> Image.Image:
    """Pictures (H, W, 3) uint8 in rows under the titles of their columns, each prompt above its rows."""
    height, width, _ = rows[0][1][0].shape
    prompts = [k for k, (prompt, _) in enumerate(rows) if prompt and (k == 0 or rows[k - 1][0] != prompt)]
    page = Image.new("RGB", (width * len(rows[0][1]), CAPTION * (1 + len(prompts)) + height * len(rows)), "white")
    draw, top = ImageDraw.Draw(page), CAPTION
    for k, title in enumerate(titles):
        draw.text((k * width + 2, 2), title, fill="black")
    for k, (prompt, pictures) in enumerate(rows):
        if k in prompts:
            draw.text((2, top + 2), prompt, fill="black")
            top += CAPTION
        for column, picture in enumerate(pictures):
            page.paste(Image.fromarray(picture), (column * width, top))
        top += height
    return page
