"""Previews of a subject's run: its own caption, sampled from one seed."""

from __future__ import annotations

import comfy.sample
import torch
from PIL import Image

from ...training.folder import RunFolder
from ...training.subject_settings import SubjectSettings
from ...training.task import Watch
from .captioned import with_lora
from .network import PIXELS
from .preview import COUNT, Preview

SCALE = 6.0
"""CFG scale of the official code."""


class SubjectPreview(Preview):
    """As ``Preview``, of the trained model with the new word, by CFG.

    Args:
        learner: a ``SubjectLearner``.
        vae: the host's autoencoder.
        empty: conditioning of the empty prompt.
        settings, folder: of the run.
        watch: gets ``show(step, steps, picture)`` if it has that.
    """

    def __init__(self, learner, vae, empty: list, settings: SubjectSettings, folder: RunFolder, watch: Watch):
        super().__init__(learner.base, learner, vae, [], empty, settings, folder, watch)

    def _sample(self, step: int) -> Image.Image:
        learner, side = self.trainable, self.settings.resolution // PIXELS
        wanted = f"a photo of a <0> {self.settings.class_word} {self.settings.preview_prompt}".strip()
        with torch.no_grad():
            positive = learner.text.conditioning(wanted, learner.rows())
        positive = [[features.cpu(), {key: value.cpu() for key, value in extra.items()}]
                    for features, extra in positive]
        model = with_lora(self.base, learner.lora(learner.parameters))
        latent = torch.zeros(COUNT, learner.network.latent_format.latent_channels, side, side)
        noise = comfy.sample.prepare_noise(latent, self.settings.seed)
        samples = comfy.sample.sample(model, noise, self.settings.preview_steps, SCALE, "dpmpp_2m", "karras", positive,
                                      self.empty, latent, disable_pbar=True, seed=self.settings.seed)
        pixels = self.vae.decode(samples)[..., :3].clamp(0.0, 1.0)
        row = torch.cat(list(pixels), dim=1)
        return Image.fromarray((row * 255.0).round().to("cpu", torch.uint8).numpy())
