"""The compared methods as recipes. Models: base, tuned (with captions), concept (null text); conditioning: caption."""

from __future__ import annotations

from ..guidance import BASE, Guidance, Prediction, Recipe

CAPTION = "caption"
BASE_NULL, BASE_CAPTION = Prediction(), Prediction(BASE, CAPTION)
TUNED_NULL, TUNED_CAPTION = Prediction("tuned"), Prediction("tuned", CAPTION)
CONCEPT = Prediction("concept")


def base_cfg(scale: float) -> Recipe:
    """Classifier-free guidance of the base (arXiv 2207.12598)."""
    return Recipe((Guidance(BASE_CAPTION, scale=scale, name="control"),))


def tuned_cfg(scale: float) -> Recipe:
    """Classifier-free guidance of the fine-tuned model, from its own unconditional prediction."""
    return Recipe((Guidance(TUNED_CAPTION, TUNED_NULL, scale, name="control"),), TUNED_NULL)


def tuned_base_null(scale: float) -> Recipe:
    """The fine-tuned model measured from the base's unconditional prediction (arXiv 2504.01521, 2503.20240)."""
    return Recipe((Guidance(TUNED_CAPTION, scale=scale, name="control"),))


def concept_only(scale: float = 1.0) -> Recipe:
    """Rectified guidance of the concept model without text (arXiv 2312.08195); 1 is the concept model alone."""
    return Recipe((Guidance(CONCEPT, scale=scale, name="concept"),))


def gcfg(concept: float, control: float) -> Recipe:
    """Concept and control guidance from the base's unconditional prediction (arXiv 2312.08195)."""
    return Recipe((Guidance(CONCEPT, scale=concept, name="concept"),
                   Guidance(BASE_CAPTION, scale=control, name="control")))
