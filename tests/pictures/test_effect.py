"""What the family is for: GCFG shows what is asked for, in the concept's look; the others miss one of the two."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pictures import judge, measure, shipped
from gcfg.miniature import recipes
from gcfg.miniature.metrics import frechet_distance, moments

if not (shipped.MODELS / "judge.safetensors").is_file():
    pytest.skip("the shipped weights are not in this checkout (benchmarks/pictures/models)", allow_module_level=True)

SEEDS = range(100, 103)
PROMPTS = [prompt for prompt in measure.PROMPTS if prompt[0] in ("sunglasses", "halo")]


@pytest.fixture(scope="module")
def family():
    return measure.Narrow.load(shipped.MODELS)


@pytest.fixture(scope="module")
def eye():
    return judge.read()


def seen(family, eye, recipe, prompts=PROMPTS, seeds=SEEDS) -> tuple[float, float]:
    """The share of pictures that show what was asked for, and their distance to the concept's."""
    critic, concept = eye
    pictures = family.pictures(recipe, [prompt for _, prompt in prompts], seeds)
    features, attributes, _ = critic(pictures)
    asked = torch.tensor([list(judge.ATTRIBUTES).index(name) for name, _ in prompts]).repeat_interleave(len(seeds))
    shown = attributes.gather(1, asked[:, None]) > 0
    return float(shown.float().mean()), frechet_distance(moments(features), moments(concept))


def test_gcfg_shows_what_the_concept_ignores_and_looks_as_the_base_does_not(family, eye):
    """What was fine-tuned without captions follows no prompt, the base has another look; together they have both."""
    asked, near = seen(family, eye, recipes.gcfg(*measure.CHOSEN))
    _, base_distance = seen(family, eye, recipes.base_cfg(4.0))
    alone, _ = seen(family, eye, recipes.concept_only(), PROMPTS[:1])
    assert asked > 0.8 and alone < 0.2
    assert near < 0.7 * base_distance


def test_the_table_reads_what_it_does_not_know_as_one_word():
    table = shipped.words()
    assert len(table("smiling face with heart-eyes")) == 77
    assert table("zzzqqq cat") != table("cat") and table("zzzqqq cat") == table("qqqzzz cat")
    with pytest.raises(ValueError, match="longer than 75 tokens"):
        table("cat " * 76)


@pytest.mark.slow
def test_a_lora_without_captions_keeps_its_look_as_a_concept(family, eye):
    """All ten prompts: under classifier-free guidance the LoRA obeys and loses the look, in GCFG it keeps both."""
    alone, far = seen(family, eye, recipes.tuned_cfg(2.0).renamed({"tuned": "trigger_lora"}), measure.PROMPTS)
    guided, near = seen(family, eye, recipes.gcfg(1.5, 2.0).renamed({"concept": "trigger_lora"}), measure.PROMPTS)
    assert min(alone, guided) > 0.7
    assert near < 0.7 * far
