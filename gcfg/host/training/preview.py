"""Previews of a run: the base and the model in training, sampled together by GCFG from one seed."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ...training.folder import RunFolder
from ...training.settings import Settings
from ...training.task import Watch, is_out_of_memory
from ..previews import picture_of, show_result
from ..sampling.chain import Link
from ..sampling.patch import apply
from .network import PIXELS
from .trainable import Trainable

COUNT = 2
"""Pictures in a preview."""
CONCEPT_SCALE, CONTROL_SCALE = 1.5, 2.5
"""The defaults of KSampler (GCFG)."""


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
    """Passes a run's news on to another ``Watch``, and makes its previews.

    Args:
        base, trainable: the two models.
        vae: the host's autoencoder.
        control, empty: conditionings of the preview's prompt and of the empty one; the same for none.
        settings, folder: of the run.
        watch: gets ``show(step, steps, picture)`` if it has that.
    """

    def __init__(self, base: ModelPatcher, trainable: Trainable, vae, control: list, empty: list, settings: Settings,
                 folder: RunFolder, watch: Watch):
        self.base, self.trainable, self.vae, self.control, self.empty = base, trainable, vae, control, empty
        self.settings, self.folder, self.watch = settings, folder, watch

    def interrupted(self) -> bool:
        return self.watch.interrupted()

    def progress(self, step: int, steps: int, loss: float) -> None:
        self.watch.progress(step, steps, loss)

    def preview(self, step: int) -> None:
        """Sample, save and show; for lack of memory a run goes on without."""
        try:
            with torch.inference_mode():
                picture = self._sample(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logging.warning("GCFG: no memory for a preview beside the training; the run goes on without it.")
            return
        finally:
            if not comfy.model_management.is_device_cpu(self.trainable.device):
                comfy.model_management.unload_all_models()
        picture.save(self.folder.previews / f"step_{step:08}.jpg", quality=90)
        if hasattr(self.watch, "show"):
            self.watch.show(step, self.settings.target_steps, picture)

    def _sample(self, step: int) -> Image.Image:
        side = self.settings.resolution // PIXELS
        concept = self.trainable.concept(self.trainable.parameters, f"step {step}")
        model = apply(self.base, [Link(model=concept, scale=CONCEPT_SCALE, name="Concept")])
        latent = torch.zeros(COUNT, self.trainable.latent_format.latent_channels, side, side)
        noise = comfy.sample.prepare_noise(latent, self.settings.seed)
        cfg = 1.0 if self.control is self.empty else CONTROL_SCALE
        samples = comfy.sample.sample(model, noise, self.settings.preview_steps, cfg, "dpmpp_2m", "sgm_uniform",
                                      self.control, self.empty, latent, disable_pbar=True, seed=self.settings.seed)
        pixels = self.vae.decode(samples)[..., :3].clamp(0.0, 1.0)
        row = torch.cat(list(pixels), dim=1)
        return Image.fromarray((row * 255.0).round().to("cpu", torch.uint8).numpy())
