"""A recipe as a GUIDER for the host's SamplerCustomAdvanced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider

from ...guidance import Guidance, Performance, Progress
from ...guidance.plan import scale_at
from .. import KEY
from ..models import check_conditioning, no_text
from .chain import Link
from .patch import SAMPLER_POSITIVE, apply


class Guider(CFGGuider):
    """Samples a chain of guidances on top of one unconditional (negative) conditioning.

    A first guidance that is plain classifier-free guidance on the base model takes the host's own path, as its
    positive conditioning with its scale as cfg: other packs' patches then see what they expect.

    Args:
        negative: the unconditional conditioning; None for no text, with models that need none.
        baseline_model: predicts the baseline in place of the model.
        performance: which forward passes to save; none if None.

    Raises:
        ValueError: a model or conditioning of the chain does not fit the model.
    """

    def __init__(self, model: ModelPatcher, negative: list | None, links: Sequence[Link],
                 baseline_model: ModelPatcher | None = None, performance: Performance | None = None):
        links = [replace(link, name=link.name or f"Guidance {n}") for n, link in enumerate(links, start=1)]
        first = links[0] if links and is_plain(links[0], model) else None
        rest = links[1:] if first else links
        super().__init__(apply(model, rest, baseline_model=baseline_model, performance=performance,
                               previous=SAMPLER_POSITIVE if first else None))
        if negative is None:
            negative = no_text(model, "negative")
            for link in (link for link in rest if link.model is not None and link.conditioning is None):
                no_text(link.model, link.name)
        check_conditioning(model, negative, "negative")
        positive, self.first = negative, None
        if first:
            check_conditioning(model, first.conditioning, first.name)
            positive = first.conditioning
            self.first = Guidance(SAMPLER_POSITIVE, scale=first.scale, start=first.start, end=first.end,
                                  schedule=first.schedule, name=first.name)
        self.set_conds(positive, negative)
        self.set_cfg(first.scale if first else 1.0)

    def scale_at(self, sigma: float, progress: Progress) -> float:
        """The scale of the host's guidance at a noise level; without a positive of its own the baseline is all."""
        return scale_at(self.first, sigma, progress) if self.first else 1.0

    def predict_noise(self, x, timestep, model_options, seed=None):
        """The host's guidance at the first guidance's scale here."""
        scale = self.scale_at(float(timestep[0]), model_options[KEY].progress)
        sampling_function = comfy.samplers.sampling_function  # looked up here: packs replace it for a run
        return sampling_function(self.inner_model, x, timestep, self.conds["negative"], self.conds["positive"], scale,
                                 model_options=model_options, seed=seed)


def is_plain(link: Link, model: ModelPatcher) -> bool:
    """True for a guidance that the host's own classifier-free guidance on this model computes."""
    return (link.scale != 0.0 and link.conditioning is not None and link.model in (None, model) and link.mask is None
            and link.reference != "custom" and link.shaping == type(link.shaping)() and link.perpendicular_to is None)
