"""Two heads in one picture: what the base of it is shown, words tuned by contrast, how halves are counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.pictures import data, shipped, train_unet
from benchmarks.pictures.train_two import KEPT_APART, Two
from benchmarks.subjects import characters, contrast, looks, narrow, two
from gcfg.training.data import words

COLOURS = ["", "", "blue", "green", "red", "yellow", "violet", "blue"]


def shown() -> Two:
    """Pictures whose latents are their numbers; what is read is kept as text."""
    numbers = torch.arange(len(COLOURS)).float().view(-1, 1, 1, 1).expand(-1, 4, 8, 8)
    said = [lambda dice, k=k: f"picture {k}" for k in range(len(COLOURS))]
    made = Two({"single": numbers, "left": numbers, "right": numbers + 0.5}, said, 2, None, None, COLOURS)
    object.__setattr__(made, "read", lambda texts: texts)
    return made


def test_three_of_four_steps_show_two_heads_the_left_one_named_first_and_some_colours_never_together():
    made, met = shown(), set()
    for step in range(200):
        latents, said = made.draw(8, "two", step)
        again, same = made.draw(8, "two", step)
        assert torch.equal(latents, again) and said == same
        if step % 4 == 0:
            assert latents.shape == (8, 4, 8, 8)
            continue
        assert latents.shape == (4, 4, 8, 16)
        for picture, text in zip(latents, said, strict=True):
            left, right = int(picture[0, 0, 0]), int(picture[0, 0, 8] - 0.5)
            assert text in ("", f"picture {left} and picture {right}")
            met.add(frozenset((COLOURS[left], COLOURS[right])))
    assert not met & set(KEPT_APART) and frozenset(("blue", "red")) in met and frozenset(("red",)) in met


def test_half_of_the_times_are_early_and_count_more():
    met, network = [], torch.nn.Conv2d(4, 4, 1)

    def run(noisy, times, features):
        met.append(times)
        return network.forward(noisy) * 0

    class Shown:
        def draw(self, count, stage, step):
            return torch.zeros(count, 4, 8, 8), torch.zeros(count, 77, 64)

    def losses(early: bool) -> list[float]:
        module = torch.nn.Module()
        module.forward = run
        loss_of = train_unet.denoising(module, Shown(), "any", batch=64, early=early)
        return [float(loss_of(step).detach()) for step in range(8)]

    plain = losses(False)
    uniform, met[:] = torch.cat(met), []
    weighted = losses(True)
    early = torch.cat(met)
    assert 0.4 < (uniform >= 500).float().mean() < 0.6 < 0.7 < (early >= 500).float().mean() < 0.8
    assert min(weighted) > max(plain)


@pytest.fixture(scope="module")
def family():
    if not (shipped.MODELS / "base.safetensors").is_file():
        pytest.skip("the shipped weights are not in this checkout (benchmarks/pictures/models)")
    return narrow.Family(shipped.MODELS)


def test_tuned_words_find_their_subject_and_untuned_ones_cannot(family, tmp_path):
    """Against an image half that was never trained: the views of two subjects are other to it as well."""
    torch.manual_seed(1)
    made = contrast.Tower().train(False).requires_grad_(False)
    subjects = [narrow.loaded(characters.draw(who, tmp_path / who.name)) for who in (characters.ZOG, characters.MIP)]
    before = contrast.untuned(family, 2, "cat")
    after = contrast.tuned(family, made, subjects, "cat", 1, steps=30)
    assert contrast.cosine(family, before) > 0.999 > 0.9 > contrast.cosine(family, after)
    assert all(torch.equal(row, family.row("cat").repeat(2, 1)) for row in before)
    chance = contrast.scattered(before, after, 1)
    for row, other, moved in zip(before, chance, after, strict=True):
        assert torch.isclose((other - row).norm(), (moved - row).norm()) and not torch.allclose(other, moved)

    shown = [[("", picture.movedim(0, 2), contrast.mask(picture)) for picture in each] for each in subjects]
    views = [words.whole(*each[1:], 1, number, k) for number, who in enumerate(shown) for k, each in enumerate(who)]
    seen = F.normalize(made.see(torch.stack(views)), dim=1)
    meant = F.normalize(made.project(family.read(["a photo of a <0>", "a photo of a <1>"], after)[1]), dim=1)
    right = (seen @ meant.T).argmax(1) == torch.arange(len(views)) // len(shown[0])
    assert right.float().mean() > 0.8


def test_halves_are_counted():
    left = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 0]]).bool(), torch.tensor([0, 1, 0, 0])
    right = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]]).bool(), torch.tensor([1, 0, 0, 1])
    assert two.counted(left, right) == {"half": 0.5, "both": 0.25, "nearer": 5 / 8, "twice": 0.25}


def test_what_is_nearer_may_be_neither():
    eye, said = looks.Looks(), {name: torch.zeros(1, len(kinds)) for name, kinds in looks.ANSWERS.items()}
    said["colour"][0, looks.indices("colour", "red")] = 5.0
    said["top"][0, looks.indices("top", "ears")] = 2.0
    eye.forward = lambda pictures: said
    picture = torch.zeros(1, 3, 64, 64)
    zog, mip = (eye.likelihood(picture, **who.looks) for who in (characters.ZOG, characters.MIP))
    assert mip > zog and eye.share(picture, **characters.MIP.looks) == 0
    assert torch.allclose(eye.likelihood(picture, top=("none", "antennae", "ears", "horns", "hair")), torch.zeros(1),
                          atol=1e-6)


def test_the_table_pairs_the_runs():
    def run(both: float) -> dict[str, float]:
        return dict.fromkeys(("each alone", "half", "nearer", "twice", "cosine before", "cosine after"), 0.5) | {
            "both": both}

    low, high = ({"a": [run(0.1), run(0.3)], "b": [run(0.5)]}, {"a": [run(0.3), run(0.6)], "b": [run(0.9)]})
    found = {words: high if words == two.TUNED else low for words in two.WORDS}
    lines = two.table([{"both": 0.8}], found)
    kinds = len(two.WORDS)
    assert lines[2].startswith("| base, described |  |  | 0.80 |") and len(lines) == kinds + 3 + len(two.COMPARED)
    assert all("| 0.30 |" in line for line in lines[3:2 + kinds]) and "| 0.60 |" in lines[2 + kinds]
    for line, (kind, _) in zip(lines[3 + kinds:], two.COMPARED, strict=True):
        assert ("| +0.30 [+0.05, +0.55] |" if kind == two.TUNED else "| +0.00 [+0.00, +0.00] |") in line
    assert two.by_pair(found)[2] == "| a " + "| 0.20; 0.50 " * (kinds - 1) + "| 0.45; 0.50 |"


def test_characters_of_a_pair_are_told_apart_by_what_they_are_said_to_differ_in():
    for first, second in two.PAIRS.values():
        assert first.looks != second.looks and first.name != second.name
        assert characters.portrait(first, "smile", 0.0, 1.0).tobytes() != characters.portrait(
            second, "smile", 0.0, 1.0).tobytes()


@pytest.mark.slow
def test_the_base_draws_two_heads_that_it_was_never_shown_together(tmp_path):
    """Colours, left and right as named."""
    if not (data.WORK / "two" / "models" / "base.safetensors").is_file():
        pytest.skip("train_two was not run here")
    study = two.Two(data.WORK, {"blue and green": (characters.like("b", "blue", "round", "ears"),
                                                   characters.like("g", "green", "square", "ears"))}, (), tmp_path)
    found, = study.base()
    assert found["half"] > 0.6 and found["twice"] < 0.2
