"""The few pictures of a subject as many samples: what is drawn is what the caption and the mask say."""

import numpy as np
import pytest
import torch
from PIL import Image

from gcfg.training.data import variants
from gcfg.training.data.variants import CELL, LARGE, SMALL, Subject, variant

SIDE = 128
COUNT = range(200)


@pytest.fixture(scope="module")
def drawn():
    """200 variants of a white picture whose every pixel counts: pixels, mask, prefix."""
    subject = Subject("", resolution=SIDE, flip=False)
    return [variant(torch.ones(SIDE, SIDE, 3), torch.ones(SIDE, SIDE, 1), subject, number) for number in COUNT]


def test_captions_say_how_large_the_thing_is(drawn):
    prefixes = {prefix for _, _, prefix in drawn}
    assert prefixes == {"", *SMALL, *LARGE}
    for pixels, _, prefix in drawn:
        side = float((pixels > 0.99).float().mean()) ** 0.5  # on grey
        assert (side > 0.99) if prefix in LARGE else (side < 0.6) == (prefix in SMALL)
        assert side > 0.3


def test_two_thirds_are_scaled_down_and_nothing_else_counts(drawn):
    """Cells of the mask lie inside the pasted picture, one cell from its borders (arXiv 2405.17532's code)."""
    small = [(pixels, mask) for pixels, mask, prefix in drawn if float(pixels.min()) < 0.99]
    assert 0.55 < len(small) / len(drawn) < 0.77
    for pixels, mask in small:
        covered = (pixels.mean(-1) > 0.99).float()
        cells = torch.nn.functional.avg_pool2d(covered[None], CELL)
        assert bool((cells[mask > 0] == 1.0).all()) and 0 < float(mask.sum()) < float(cells.sum())


def test_a_mask_goes_where_its_picture_goes():
    """The left half counts and is white; the rest is black."""
    pixels = torch.zeros(SIDE, SIDE, 3)
    pixels[:, :SIDE // 2] = 1.0
    for number in COUNT:
        shown, mask, _ = variant(pixels, pixels[..., :1], Subject("", resolution=SIDE), number)
        white = torch.nn.functional.avg_pool2d(shown.mean(-1)[None], CELL)
        assert bool((white[mask > 0.99] > 0.9).all())


def test_without_augmentation_they_are_only_mirrored():
    pixels = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    subject, mirrored = Subject("", resolution=SIDE, augment=False), 0
    for number in COUNT:
        shown, mask, prefix = variant(pixels, torch.ones(SIDE, SIDE, 1), subject, number)
        assert prefix == "" and bool((mask == 1.0).all())
        mirrored += torch.equal(shown, pixels.flip(1))
        assert torch.equal(shown, pixels) or torch.equal(shown, pixels.flip(1))
    assert 70 < mirrored < 130


def test_variants_are_encoded_once_and_again_for_other_pictures(tmp_path):
    asked = []

    def encoder(pictures):
        asked.append(pictures)
        return pictures.movedim(-1, 1)[:, :, ::CELL, ::CELL]

    def draw(value):
        for k in range(2):
            Image.fromarray(np.full((64, 64, 3), value + k, np.uint8)).save(tmp_path / f"{k}.png")
    draw(10)
    subject = Subject(str(tmp_path), resolution=64, count=5)
    first, again = (variants.encode(subject, tmp_path / "latents", "vae", encoder) for _ in range(2))
    assert first == again and len(asked) == 5 and variants.names(first) == ["0.png", "1.png"]
    assert torch.equal(first[3].load(False), again[3].load(False))
    draw(20)
    assert [each.path for each in variants.encode(subject, tmp_path / "latents", "vae", encoder)] != [
        each.path for each in first]
    assert len(asked) == 10


def test_values_that_are_not_finite_are_a_sentence(tmp_path):
    for k in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{k}.png")
    with pytest.raises(ValueError, match="not finite for 0.png; replace the picture"):
        variants.encode(Subject(str(tmp_path), resolution=64), tmp_path / "latents", "vae",
                        lambda pictures: torch.full((1, 4, 8, 8), torch.nan))
