"""The compared methods as recipes. Models: base, tuned (with captions), concept (null text); conditioning: caption."""

from __future__ import annotations

from ..guidance import BASE, Guidance, Prediction, Recipe, Schedule, Shaping

CAPTION, CLASS = "caption", "class"
"""Conditionings: the control prompt, and the concept's class in the base's words (ring)."""
BASE_NULL, BASE_CAPTION = Prediction(), Prediction(BASE, CAPTION)
TUNED_NULL, TUNED_CAPTION = Prediction("tuned"), Prediction("tuned", CAPTION)
BASE_CLASS = Prediction(BASE, CLASS)
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


def class_control(control: float) -> Recipe:
    """GCFG with the control guidance measured from the concept's class in the base's words."""
    return Recipe((Guidance(CONCEPT, name="concept"), Guidance(BASE_CAPTION, BASE_CLASS, control, name="control")))


def tuned_control(control: float) -> Recipe:
    """The concept model with the classifier-free guidance of the fine-tuned model as control guidance."""
    return Recipe((Guidance(CONCEPT, name="concept"), Guidance(TUNED_CAPTION, TUNED_NULL, control, name="control")))


def late_concept(control: float, start: float) -> Recipe:
    """GCFG with a window: the concept guidance begins at a sampling progress, once the control has had its say."""
    return Recipe((Guidance(CONCEPT, start=start, name="concept"),
                   Guidance(BASE_CAPTION, scale=control, name="control")))


def rising_control(first: float, then: float, by: float = 0.2) -> Recipe:
    """GCFG with a schedule: the control guidance grows from one scale to another until a sampling progress."""
    schedule = Schedule("points", points=((0.0, first), (by, then)))
    return Recipe((Guidance(CONCEPT, name="concept"), Guidance(BASE_CAPTION, schedule=schedule, name="control")))


def limited_concept(control: float, limit: float) -> Recipe:
    """GCFG with a norm limit on the concept guidance."""
    return Recipe((Guidance(CONCEPT, shaping=Shaping(norm_limit=limit), name="concept"),
                   Guidance(BASE_CAPTION, scale=control, name="control")))


def balanced_concept(share: float, control: float) -> Recipe:
    """GCFG with the concept guidance at a share of the control guidance's size, at every step."""
    return Recipe((Guidance(CONCEPT, shaping=Shaping(balance=share), name="concept"),
                   Guidance(BASE_CAPTION, scale=control, name="control")))


def across_control(control: float, reference: Prediction = BASE_NULL) -> Recipe:
    """GCFG with the concept guidance projected orthogonal to the control guidance, which is measured from a reference.

    The concept can no longer pull what the prompt asks for back to what it knows.
    """
    return Recipe((Guidance(CONCEPT, perpendicular_to=(BASE_CAPTION, reference), name="concept across control"),
                   Guidance(BASE_CAPTION, reference, control, name="control")))
