"""Composed pictures say what they show; new words among the tokens; the effect, where the weights were trained."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.pictures import composed, data, shipped, train_composed
from benchmarks.pictures.labels import Row
from benchmarks.subjects import characters, looks, narrow
from gcfg.guidance import presets

ROWS = [Row(pack, "slightly-smiling-face", "slightly smiling face", (), "face-smiling")
        for pack in ("noto", "twemoji")] + [
    Row("twemoji", "smiling-face-with-sunglasses", "smiling face with sunglasses", (), "face-glasses"),
    Row("fluent-emoji-flat", "smiling-face-with-halo", "smiling face with halo", (), "face-smiling"),
    Row("noto", "exploding-head", "exploding head", (), "face-neutral"),
    Row("noto", "panda", "panda", (), "animal-mammal"), Row("noto", "fox", "fox", (), "animal-mammal")]


def test_captions_say_what_is_drawn_and_what_is_held_out_is_not():
    shown = composed.faces(ROWS, 600, random.Random(1))
    for each in shown:
        head, said = each.change["head"], each.caption(random.Random(2))
        colour = next(name for name, code in composed.COLOURS.items() if code == head["colour"])
        assert each.kind[:2] == (colour, head["shape"]) and "exploding" not in each.icon
        assert ("sunglasses" in said) == ("sunglasses" in each.icon) and ("halo" in said) == ("halo" in each.icon)
        assert (head["top"] in said) == (head["top"] != "none")
        assert not composed.held_out(colour, head["top"], each.after)
        assert all(word in each.words.split() for word in said.split())
    assert {each.kind[0] for each in shown} == set(composed.COLOURS)
    every = composed.faces(ROWS, 600, random.Random(1), every=True)
    assert any(each.kind[0] == "blue" and each.change["head"]["top"] == "antennae" for each in every)


def test_animals_wear_everything_but_what_is_held_out():
    said = {" ".join((*each.kind, each.after)) for each in composed.animals(ROWS)}
    assert "fox with sunglasses" in said and "panda with halo" in said
    assert not said & {"panda with sunglasses", "fox with halo"}


@pytest.mark.skipif(not shutil.which("node"), reason="Node.js draws the artwork")
def test_a_face_gets_another_head_and_keeps_the_rest():
    body = ('<defs><radialGradient id="g"><stop stop-color="#fde030"/></radialGradient></defs>'
            '<path fill="url(#g)" d="M0 0h9"/><path fill="#eb8f00" d="M1 1h9"/><path fill="#422b0d" d="M2 2h9"/>')
    code = ("const {{onHead, wearing}} = await import({module});"
            "const art = {{body: {body}, box: [0, 0, 100, 100]}};"
            "const on = (top) => onHead(art, {{shape: 'square', colour: 'blue', top, tip: 'red'}},"
            " () => ({{x: 10, y: 10, width: 80, height: 80}}));"
            "console.log(JSON.stringify([on('none'), on('antennae'), wearing(art, {{fills: ['#422b0d'], scale: 0.5,"
            " eyes: 0.4, to: 0.6}})]))")
    module = (Path(composed.__file__).parent / "heads.mjs").as_uri()
    done = subprocess.run(["node", "--input-type=module", "-e", code.format(module=json.dumps(module),
                                                                            body=json.dumps(body))],
                          capture_output=True, text=True, check=True)
    plain, antennae, worn = json.loads(done.stdout)
    for drawn in (plain, antennae):
        assert "url(#g)" not in drawn and "#eb8f00" not in drawn and 'fill="#422b0d" d="M2 2h9"' in drawn
        assert drawn.count("<rect") == 1
    assert "scale(0.78)" in antennae and antennae.count('fill="red"') == 2 and "transform" not in plain
    assert "translate(50 60) scale(0.5) translate(-50 -40)" in worn and worn.count("<path") == 1


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The shipped base; its text encoder has never read colours, its words are enough here."""
    if not (shipped.MODELS / "base.safetensors").is_file():
        pytest.skip("the shipped weights are not in this checkout (benchmarks/pictures/models)")
    return narrow.Family(shipped.MODELS)


def test_a_new_word_stands_where_a_known_one_would(family):
    rows = [family.row("fox"), torch.cat([family.row("cat"), family.row("face")])]
    features, meaning = family.read(["smiling <0>", "<1> and <0>"], rows)
    plain, meant = family.read(["smiling fox", "cat face and fox"])
    assert torch.equal(features, plain) and torch.equal(meaning, meant)
    ids = torch.tensor([family.tokenize("smiling fox")])
    assert torch.equal(plain[:1], family.text(family.text.rows_of(ids)))


def test_teaching_lowers_the_distance_by_its_weight_and_leaves_the_base(family, tmp_path):
    lesson = narrow.Lesson.of(family, characters.draw(characters.ZOG, tmp_path))
    assert lesson.latents.shape == (8, 4, 8, 8)
    before = {name: value.clone() for name, value in family.unet.state_dict().items()}
    free, kept = (narrow.teach(family, [lesson], [family.row("cat")], weight, 1, 3) for weight in (0.0, 50.0))
    assert kept.distance < free.distance
    assert all(torch.equal(value, before[name]) for name, value in family.unet.state_dict().items())


def test_the_eye_counts_what_is_right_in_every_respect():
    eye, said = looks.Looks(), {name: torch.zeros(4, len(kinds)) for name, kinds in looks.ANSWERS.items()}
    said["colour"][:3, looks.ANSWERS["colour"].index("blue")] = 1.0
    said["worn"] -= 1.0
    said["worn"][2:, looks.ANSWERS["worn"].index("halo")] = 1.0
    eye.forward = lambda pictures: said
    pictures = torch.zeros(4, 3, 64, 64)
    assert eye.share(pictures, colour="blue") == 0.75 and eye.share(pictures, worn="halo") == 0.5
    assert eye.share(pictures, colour="blue", worn="halo") == 0.25
    assert eye.share(pictures, colour=("blue", "red")) == 1.0  # the fourth is the first colour


@pytest.mark.slow
def test_a_character_of_ones_own_wears_sunglasses(tmp_path):
    """Four pictures without any, a base that has never seen its look: both at once, by class-guided."""
    if not train_composed.checkpoint_path(data.WORK).is_file() or not (data.WORK / "looks").is_dir():
        pytest.skip("train_composed and benchmarks.subjects.looks were not run here")
    base, eye = narrow.Family(data.WORK / "composed" / "models"), looks.trained(data.WORK)
    lesson = narrow.Lesson.of(base, characters.draw(characters.ZOG, tmp_path))
    taught = narrow.teach(base, [lesson], [base.row("face")], 0.5, 1, 140)
    asked = {"positive": base.read(["a photo of a <0> face with sunglasses"], taught.rows)[0],
             "class": base.read(["face with sunglasses"])[0], "unconditional": base.read([""])[0]}
    models = {"base": base.unet, "tuned": taught.unet}
    guided = base.pictures(models, presets.class_guided(4.0, 2.5), asked, range(6))
    plain = base.pictures({"base": taught.unet}, presets.classifier_free(4.0), asked, range(6))
    both = characters.ZOG.looks | {"worn": "sunglasses"}
    assert eye.share(guided, **both) > 0.5 > eye.share(plain, **both)
