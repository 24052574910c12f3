"""Previews of a subject's run: its own caption, sampled from one seed."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.sample
import torch
from PIL import Image

from ....training.run.folder import RunFolder
from ....training.run.task import Watch
from ....training.subject_settings import SubjectSettings
from ..models.captioned import with_lora
from ..preview import Preview, sheet

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
        super().__init__(learner.base, learner, vae, {"": empty}, settings, folder, watch)

    def _picture(self, step: int, weights: Mapping[str, torch.Tensor]) -> Image.Image:
        learner, s = self.trainable, self.settings
        rows = []
        for prompt in s.prompts():
            with torch.no_grad():
                positive = learner.text.conditioning(learner.caption(prompt), learner.rows())
            positive = [[features.cpu(), {key: value.cpu() if isinstance(value, torch.Tensor) else value
                                          for key, value in extra.items()}] for features, extra in positive]
            model = with_lora(self.base, learner.lora(weights))
            latent = self._empty(s.preview_count)
            noise = comfy.sample.prepare_noise(latent, s.seed)
            samples = comfy.sample.sample(model, noise, s.preview_steps, SCALE, "dpmpp_2m", "karras", positive,
                                          self.prompts[""], latent, disable_pbar=True, seed=s.seed,
                                          callback=self._ask)
            rows.append((prompt, list(self._decoded(samples))))
        return sheet(rows, [f"step {step}"])
