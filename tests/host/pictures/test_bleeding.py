"""Two LoRAs in one picture of a real ComfyUI: beside merged LoRAs, masked guidances keep each subject itself."""

import pytest
import torch

from harness.find import PACK, load_package

load_package("benchmarks", PACK / "benchmarks")
from benchmarks.pictures import data, expand
from benchmarks.pictures.labels import CHARACTERS
from benchmarks.subjects import bleeding, bleeding_methods, critic

if not all((data.WORK / name).is_dir() for name in ("pairs", "critic", *CHARACTERS)):
    pytest.skip("the base of pairs, the characters and the critic are not trained on this machine (benchmarks/pictures/"
                "README.md)", allow_module_level=True)

PAIR, SEED = bleeding.PAIRS[0], bleeding.SEEDS[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bleeding")
    expand.expand(folder, bleeding.pack(data.WORK, folder / "narrow"))
    return bleeding_methods.World.load(folder)


def read(eye, world, latent) -> torch.Tensor:
    """The critic's shares of each 64 pixels of a picture."""
    picture = world.picture(latent).movedim(2, 0)
    return eye(torch.stack(picture.split(64, dim=2))).softmax(1)


@pytest.mark.slow
def test_two_characters_do_not_bleed(world):
    eye, index = critic.trained(data.WORK), [list(CHARACTERS).index(name) for name in PAIR]
    own = torch.stack([read(eye, world, world.alone(name, SEED))[0, i] for name, i in zip(PAIR, index, strict=True)])
    assert own.min() > 0.7
    rows = {}
    for method in ("merged LoRAs", "ours", "ours, the base first"):
        said = read(eye, world, bleeding_methods.METHODS[method](world, PAIR, SEED))
        rows[method] = ((said[[0, 1], index] / own).mean(), (said[[0, 1], index[::-1]] / own.flip(0)).max())
    for method, goal in (("ours", 0.7), ("ours, the base first", 0.85)):
        identity, leak = rows[method]
        assert identity > goal and leak < 0.15
        assert identity > rows["merged LoRAs"][0] + 0.2


def test_coupled_attention_of_one_text_is_that_text(world):
    """The comparison is fair: with the same text on both sides, attention couple changes nothing."""
    text = world.text("fox")
    coupled = bleeding_methods.coupled_attention(
        world.model, [text[0][0]] * 2, [bleeding_methods.half(side) for side in (0, 1)])
    plain = world._stock(world.model, text, world.text(""), SEED)["samples"]
    assert torch.allclose(world._stock(coupled, text, world.text(""), SEED)["samples"], plain, atol=1e-4)


def test_the_characters_sides_are_exact_halves():
    left, right = (bleeding_methods.half(side) for side in (0, 1))
    assert left.shape == (1, 64, 128) and torch.equal(left + right, torch.ones(1, 64, 128))
    assert bleeding.EDGE == 64 and left[0, 0, 63] == 1 and left[0, 0, 64] == 0
