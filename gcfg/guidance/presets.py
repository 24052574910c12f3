"""Named methods as recipes, a function each. D(m, c) is the denoised prediction of model m under conditioning c.

All are measured from the base's unconditional prediction D_0 = D(base, null), so that they can be put into one chain
and added up. A method that knows no D_0 is written so that D_0 cancels: ``D_0 + 1 (D_i - D_0) + ...``.
"""

from __future__ import annotations

from collections.abc import Mapping

from .recipe import BASE, UNCONDITIONAL, Guidance, Prediction, Recipe

POSITIVE, NEGATIVE, IMAGE, CLASS = "positive", "negative", "image", "class"
"""Conditionings: the prompt; a prompt to avoid; an image to edit, without text; what all pictures of a concept are."""
CONCEPT, TUNED, WEAK, PERTURBED, MIXED = "concept", "tuned", "weak", "perturbed", "mixed"
"""Models: a null-text concept model; a fine-tuned model; a weaker one; the base with identity self-attention; weights
between base and fine-tuned model."""

PROMPT = Prediction(BASE, POSITIVE)


def classifier_free(scale: float) -> Recipe:
    """Classifier-free guidance (arXiv 2207.12598, equation 6, where w = scale - 1).

    ``D = D_0 + scale (D(c) - D_0)``
    """
    return Recipe((Guidance(PROMPT, scale=scale, name="prompt"),))


def composable(scales: Mapping[str, float]) -> Recipe:
    """Composable diffusion (arXiv 2206.01714, conjunction and negation): AND, and NOT with a negative scale.

    ``D = D_0 + sum_i scale_i (D(c_i) - D_0)``

    Args:
        scales: of each conditioning by its name.
    """
    return Recipe(tuple(Guidance(Prediction(BASE, c), scale=s, name=c) for c, s in scales.items()))


def instruct_pix2pix(text_scale: float, image_scale: float) -> Recipe:
    """InstructPix2Pix (arXiv 2211.09800, equation 3): POSITIVE is image and instruction, IMAGE the image without text.

    ``D = D_0 + image_scale (D(image) - D_0) + text_scale (D(image, text) - D(image))``
    """
    image = Prediction(BASE, IMAGE)
    return Recipe((Guidance(image, scale=image_scale, name="image"),
                   Guidance(PROMPT, image, text_scale, name="instruction")))


def perp_neg(scale: float, negative_scales: Mapping[str, float]) -> Recipe:
    """Perp-Neg (arXiv 2304.04968, algorithm 1): negatives without what they have in common with the prompt.

    ``D = D_0 + scale (d - sum_i w_i (n_i - <n_i, d> / |d|^2 d))`` with d = D(c) - D_0 and n_i = D(c_i) - D_0.

    Args:
        negative_scales: w_i of each conditioning to avoid by its name; positive numbers push away.
    """
    away = (Guidance(Prediction(BASE, c), scale=-scale * w, name=c, perpendicular_to=(PROMPT, Prediction()))
            for c, w in negative_scales.items())
    return Recipe((Guidance(PROMPT, scale=scale, name="prompt"), *away))


def autoguidance(scale: float) -> Recipe:
    """AutoGuidance (arXiv 2406.02507): a worse version of the model under the same prompt as reference.

    ``D = D(weak, c) + scale (D(c) - D(weak, c))``; 1 is the model alone, 2 is usual.
    """
    return Recipe((Guidance(PROMPT, name="prompt"),
                   Guidance(PROMPT, Prediction(WEAK, POSITIVE), scale - 1.0, name="autoguidance")))


def perturbed_attention(scale: float, text_scale: float = 1.0) -> Recipe:
    """Perturbed-attention guidance (arXiv 2403.17377), beside classifier-free guidance.

    ``D = D_0 + text_scale (D(c) - D_0) + scale (D(c) - D(perturbed, c))``; text_scale 1 is without the latter.
    """
    return Recipe((Guidance(PROMPT, scale=text_scale, name="prompt"),
                   Guidance(PROMPT, Prediction(PERTURBED, POSITIVE), scale, name="perturbed attention")))


def domain(scale: float) -> Recipe:
    """Domain guidance (arXiv 2504.01521): the base's unconditional prediction as reference of a fine-tuned model.

    ``D = D_0 + scale (D(tuned, c) - D_0)``
    """
    return Recipe((Guidance(Prediction(TUNED, POSITIVE), scale=scale, name="domain"),))


def personalization(scale: float) -> Recipe:
    """Personalization guidance (arXiv 2508.00319): a half forgotten fine-tuned model without text as reference.

    ``D = D(mixed) + scale (D(tuned, c) - D(mixed))``, the weights of "mixed" being base + weight (tuned - base):
    weight 0 is domain guidance, 1 classifier-free guidance of the fine-tuned model.
    """
    tuned = Prediction(TUNED, POSITIVE)
    return Recipe((Guidance(tuned, name="tuned model"),
                   Guidance(tuned, Prediction(MIXED, UNCONDITIONAL), scale - 1.0, name="personalization")))


def class_guided(scale: float, subject_scale: float) -> Recipe:
    """Class-guided: composition from the base and the subject's class, the subject from what its model adds to that.

    ``D = D_0 + scale (D(class) - D_0) + subject_scale (D(tuned, c) - D(class))``: ClassDiffusion's aim (arXiv
    2405.17532) at inference. POSITIVE names the subject ("a NEW dog wearing glasses"), CLASS is the same prompt with
    the class alone ("a dog wearing glasses"). subject_scale 0 is the base, ``scale`` the tuned model measured from
    the base.
    """
    plain = Prediction(BASE, CLASS)
    return Recipe((Guidance(plain, scale=scale, name="class"),
                   Guidance(Prediction(TUNED, POSITIVE), plain, subject_scale, name="subject")))


def concept_centric(control_scale: float, concept_scale: float) -> Recipe:
    """Concept-centric personalization (arXiv 2312.08195): fidelity from the concept model, control from the base.

    ``D = D_0 + concept_scale (D(concept) - D_0) + control_scale (D(c) - D_0)``
    """
    return Recipe((Guidance(PROMPT, scale=control_scale, name="control"),
                   Guidance(Prediction(CONCEPT, UNCONDITIONAL), scale=concept_scale, name="concept")))


def concept_across_control(control_scale: float, concept_scale: float, measured_from: str = UNCONDITIONAL) -> Recipe:
    """Concept-centric, the concept guidance without its part along the control guidance (as in Perp-Neg).

    ``D = D_0 + concept_scale (g - <g, d> / |d|^2 d) + control_scale d`` with g = D(concept) - D_0, d = D(c) - D(m):
    the concept can no longer pull what the prompt asks for back to what it knows (benchmarks/miniature/RESULTS.md).

    Args:
        measured_from: conditioning m; CLASS leaves what the prompt adds to the concept's class in the base's words.
    """
    reference = Prediction(BASE, measured_from)
    return Recipe((Guidance(PROMPT, reference, control_scale, name="control"),
                   Guidance(Prediction(CONCEPT, UNCONDITIONAL), scale=concept_scale, name="concept across control",
                            perpendicular_to=(PROMPT, reference))))


def lora_guidance(scale: float) -> Recipe:
    """Guidance from a base towards a LoRA on it, for distilled bases that have no unconditional prediction of use.

    ``D = D(c) + scale (D(tuned, c) - D(c))``; scale 1 is the LoRA alone, D_0 cancels and need not be evaluated.
    """
    return Recipe((Guidance(PROMPT, name="prompt"),
                   Guidance(Prediction(TUNED, POSITIVE), PROMPT, scale, name="LoRA")))


def concept_on_distilled(scale: float, measured_under: str = UNCONDITIONAL) -> Recipe:
    """A concept on a distilled base: measured from the base under the same conditioning m, added to the prompt's own.

    ``D = D(c) + scale (D(concept, m) - D(m))``

    Args:
        measured_under: conditioning m; CLASS is what all pictures of the concept are.
    """
    return Recipe((Guidance(PROMPT, name="prompt"),
                   Guidance(Prediction(CONCEPT, measured_under), Prediction(BASE, measured_under), scale,
                            name="concept")))
