"""Every named method equals its own formula, written out by hand on noise predictions or denoised ones."""

import json

import pytest
import torch

from gcfg.guidance import BASE, UNCONDITIONAL, Prediction, Progress, Recipe, combine, plan, presets

PROGRESS = Progress(lambda p: 10 * (1 - p), 10.0)
SIGMA = 3.0


class Predictions(dict):
    """Denoised predictions (2, 4, 8, 8) of any model under any conditioning, random but always the same."""

    def __missing__(self, prediction):
        seed = sum(ord(c) * 31 ** i for i, c in enumerate(f"{prediction}")) % 2 ** 31
        self[prediction] = torch.randn((2, 4, 8, 8), generator=torch.manual_seed(seed), dtype=torch.float64)
        return self[prediction]


@pytest.fixture
def known():
    return Predictions()


@pytest.fixture
def x():
    return torch.randn((2, 4, 8, 8), generator=torch.manual_seed(0), dtype=torch.float64) * SIGMA


def run(recipe: Recipe, known: Predictions, x: torch.Tensor) -> torch.Tensor:
    """The recipe evaluated on what its plan asks for and nothing else."""
    step = plan(recipe, SIGMA, PROGRESS)
    return combine(step, {p: known[p] for p in step.all_predictions}, x, SIGMA)


def noise(known: Predictions, x: torch.Tensor, model: str = BASE, conditioning: str = UNCONDITIONAL) -> torch.Tensor:
    """The same prediction as noise, the form in which most papers write: eps = (x - D) / sigma."""
    return (x - known[Prediction(model, conditioning)]) / SIGMA


def along(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The part of a along b, sample by sample."""
    return torch.stack([(p * q).sum() / (q * q).sum() * q for p, q in zip(a, b, strict=True)])


def same(a, b):
    return torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_classifier_free_guidance(known, x):
    w = 6.5  # in the paper's own form, (1 + w) eps(c) - w eps
    eps = (1 + w) * noise(known, x, conditioning="positive") - w * noise(known, x)
    assert same(run(presets.classifier_free(w + 1), known, x), x - SIGMA * eps)


def test_composable_diffusion(known, x):
    null = noise(known, x)
    eps = null.clone()
    for conditioning, weight in (("a", 4.0), ("b", 2.5), ("c", -1.0)):
        eps += weight * (noise(known, x, conditioning=conditioning) - null)
    assert same(run(presets.composable({"a": 4.0, "b": 2.5, "c": -1.0}), known, x), x - SIGMA * eps)


def test_instruct_pix2pix(known, x):
    null, image, both = (noise(known, x, conditioning=c) for c in (UNCONDITIONAL, "image", "positive"))
    eps = null + 1.5 * (image - null) + 7.5 * (both - image)
    assert same(run(presets.instruct_pix2pix(7.5, 1.5), known, x), x - SIGMA * eps)


def test_perp_neg(known, x):
    null = noise(known, x)
    main = noise(known, x, conditioning="positive") - null
    total = main.clone()
    for conditioning, weight in (("glasses", 1.0), ("hat", 0.5)):
        negative = noise(known, x, conditioning=conditioning) - null
        total -= weight * (negative - along(negative, main))
    recipe = presets.perp_neg(7.5, {"glasses": 1.0, "hat": 0.5})
    assert same(run(recipe, known, x), x - SIGMA * (null + 7.5 * total))


def test_perp_neg_ignores_a_negative_that_repeats_the_prompt(known, x):
    """What the method is for: the shared part of the negative prompt does not weaken the prompt."""
    null, positive = known[Prediction()], known[presets.PROMPT]
    known[Prediction(BASE, "negative")] = null + 0.5 * (positive - null)
    assert same(run(presets.perp_neg(7.5, {"negative": 1.0}), known, x), null + 7.5 * (positive - null))


def test_autoguidance(known, x):
    weak, strong = known[Prediction("weak", "positive")], known[Prediction(BASE, "positive")]
    recipe = presets.autoguidance(2.2)
    assert same(run(recipe, known, x), 2.2 * strong + (1 - 2.2) * weak)
    assert Prediction() not in plan(recipe, SIGMA, PROGRESS).all_predictions  # it costs no unconditional prediction


def test_perturbed_attention(known, x):
    null, eps, perturbed = noise(known, x), *(noise(known, x, m, "positive") for m in (BASE, "perturbed"))
    assert same(run(presets.perturbed_attention(3.0), known, x), x - SIGMA * (eps + 3.0 * (eps - perturbed)))
    both = eps + 3.0 * (eps - perturbed) + (4.0 - 1) * (eps - null)
    assert same(run(presets.perturbed_attention(3.0, 4.0), known, x), x - SIGMA * both)


def test_domain_guidance(known, x):
    tuned, base = noise(known, x, "tuned", "positive"), noise(known, x)
    assert same(run(presets.domain(1.5), known, x), x - SIGMA * (1.5 * tuned + (1 - 1.5) * base))


def test_personalization_guidance(known, x):
    tuned, mixed = noise(known, x, "tuned", "positive"), noise(known, x, "mixed")
    recipe = presets.personalization(7.5)
    assert same(run(recipe, known, x), x - SIGMA * (mixed + 7.5 * (tuned - mixed)))
    assert Prediction() not in plan(recipe, SIGMA, PROGRESS).all_predictions


def test_class_guided(known, x):
    null, plain = known[Prediction()], known[Prediction(BASE, "class")]
    subject = known[Prediction("tuned", "positive")]
    assert same(run(presets.class_guided(7.5, 5.0), known, x), null + 7.5 * (plain - null) + 5.0 * (subject - plain))
    assert same(run(presets.class_guided(7.5, 7.5), known, x), null + 7.5 * (subject - null))
    assert same(run(presets.class_guided(7.5, 0.0), known, x), null + 7.5 * (plain - null))


def test_concept_centric(known, x):
    null, concept, control = noise(known, x), noise(known, x, "concept"), noise(known, x, conditioning="positive")
    eps = (1 - 2.5 - 2.0) * null + 2.5 * concept + 2.0 * control
    assert same(run(presets.concept_centric(2.0, 2.5), known, x), x - SIGMA * eps)


def test_concept_across_control(known, x):
    null, concept, control = (known[p] for p in (Prediction(), Prediction("concept"), presets.PROMPT))
    g, d = concept - null, control - null
    recipe = presets.concept_across_control(4.0, 1.5)
    assert same(run(recipe, known, x), null + 4.0 * d + 1.5 * (g - along(g, d)))
    of_class = known[Prediction(BASE, "class")]
    recipe = presets.concept_across_control(4.0, 1.5, presets.CLASS)
    d = control - of_class
    assert same(run(recipe, known, x), null + 4.0 * d + 1.5 * (g - along(g, d)))


def test_recipes_survive_a_file_and_new_names():
    recipe = presets.perp_neg(7.5, {"negative": 1.0})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    renamed = recipe.renamed(conditionings={"positive": "prompt"})
    assert renamed.guidances[1].perpendicular_to == (Prediction(BASE, "prompt"), Prediction())


def test_a_projection_asks_for_what_it_is_projected_on():
    away = presets.perp_neg(7.5, {"negative": 1.0}).guidances[1]
    step = plan(Recipe((away,)), SIGMA, PROGRESS)
    assert set(step.predictions) == {Prediction(), presets.PROMPT, Prediction(BASE, "negative")}
    assert not step.baseline_cancels
    assert not plan(Recipe((away,)), SIGMA, PROGRESS, absent={presets.PROMPT}).terms
