"""Where control is lost: concept and control guidance over the noise levels, and the drift of the tuned model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gcfg.guidance import Prediction, Recipe
from gcfg.miniature.evaluate import captions
from gcfg.miniature.metrics import COLOUR, Classifier, answers_of, cosine, length
from gcfg.miniature.pictures import SIZE, draw
from gcfg.miniature.recipes import BASE_CAPTION, BASE_NULL, CONCEPT, TUNED_CAPTION, TUNED_NULL
from gcfg.miniature.sampling import STEPS, Model, noise_levels, predict, sample

LEVELS = tuple(noise_levels(STEPS)[:-1])
"""The noise levels of the tables: those of a sampling run."""


def guidance_table(models: Mapping[str, Model], classifier: Classifier, recipe: Recipe, attributes: Tensor, prompt: str,
                   seed: int) -> list[dict[str, float]]:
    """Per step of a run of the recipe: lengths and cosine of concept and control guidance, and the colour so far.

    Returns:
        One entry a step: ``sigma``; ``concept`` and ``control``, the lengths of D_concept - D_0 and D_control - D_0
        over that of D_0; ``cosine`` between them; ``concept_colour`` and ``base_colour``, the shares of samples whose
        colour is the requested one in the concept's and in the base's prompted prediction.
    """
    named = captions(attributes, prompt)
    noise = torch.randn((len(attributes), 3, SIZE, SIZE), generator=torch.Generator().manual_seed(60_000 + seed))
    entries = []

    def watch(x: Tensor, sigma: float) -> None:
        got = predict(models, (BASE_NULL, BASE_CAPTION, CONCEPT), named, x, sigma)
        start = got[BASE_NULL]
        concept, control = got[CONCEPT] - start, got[BASE_CAPTION] - start

        def colour(prediction: Tensor) -> float:
            answers = answers_of(classifier, prediction.clamp(-1.0, 1.0))
            return float((answers[:, COLOUR] == attributes[:, 1]).float().mean())

        entries.append({"sigma": sigma, "concept": float((length(concept) / length(start)).mean()),
                        "control": float((length(control) / length(start)).mean()),
                        "cosine": float(cosine(concept, control).mean()),
                        "concept_colour": colour(got[CONCEPT]), "base_colour": colour(got[BASE_CAPTION])})

    sample(models, recipe, named, noise, watch=watch)
    return entries


def drift_table(models: Mapping[str, Model], attributes: Tensor, prompt: str, seed: int) -> list[dict[str, float]]:
    """Unconditional guidance drift of the tuned model on noised real concept pictures (arXiv 2312.08195).

    Returns:
        One entry a noise level: ``sigma``; ``drift``, |D_tuned(null) - D_base(null)|; ``left``, the tuned model's own
        direction |D_tuned(c) - D_tuned(null)|; both over the base's direction |D_base(c) - D_base(null)|.
    """
    generator = torch.Generator().manual_seed(70_000 + seed)
    pictures = draw(attributes, generator, concept=True)
    noise = torch.randn(pictures.shape, generator=generator)
    named = captions(attributes, prompt)

    def entry(sigma: float) -> dict[str, float]:
        wanted: tuple[Prediction, ...] = (BASE_NULL, BASE_CAPTION, TUNED_NULL, TUNED_CAPTION)
        null, caption, tuned_null, tuned_caption = (
            p for p in predict(models, wanted, named, pictures + sigma * noise, sigma).values())
        direction = length(caption - null).mean()
        return {"sigma": sigma, "drift": float(length(tuned_null - null).mean() / direction),
                "left": float(length(tuned_caption - tuned_null).mean() / direction)}

    return [entry(sigma) for sigma in LEVELS]


def mean_over_seeds(tables: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Entry by entry the mean of tables of equal shape."""
    average: Callable[[tuple], dict] = lambda same: {k: sum(e[k] for e in same) / len(same) for k in same[0]}  # noqa: E731
    return [average(same) for same in zip(*tables, strict=True)]
