"""The drawing: deterministic, in range, and with the attributes asked for."""

import pytest
import torch

from gcfg.miniature import pictures
from gcfg.miniature.pictures import CONCEPT_COLOURS, RING, VIOLET, base_attributes, concept_attributes, draw


def drawn(seed, concept):
    generator = torch.Generator().manual_seed(seed)
    attributes = concept_attributes(12, generator) if concept else base_attributes(12, generator)
    return draw(attributes, generator, concept)


@pytest.mark.parametrize("concept", [False, True])
def test_drawing_is_deterministic_and_in_range(concept):
    first = drawn(3, concept)
    assert first.shape == (12, 3, pictures.SIZE, pictures.SIZE)
    assert torch.equal(first, drawn(3, concept)) and not torch.equal(first, drawn(4, concept))
    assert -1.0 <= float(first.min()) and float(first.max()) <= 1.0


def test_the_concept_is_rings_in_skewed_colours_without_violet():
    attributes = concept_attributes(4000, torch.Generator().manual_seed(0))
    assert (attributes[:, 0] == RING).all() and not (attributes[:, 1] == VIOLET).any()
    shares = attributes[:, 1].bincount(minlength=len(CONCEPT_COLOURS)) / len(attributes)
    assert torch.allclose(shares, torch.tensor(CONCEPT_COLOURS), atol=0.03)


def test_a_disc_has_its_colour_in_its_place():
    generator = torch.Generator().manual_seed(0)
    red_disc_left, red_disc_right = draw(torch.tensor([[0, 0, 0], [0, 0, 2]]), generator)
    left, right = slice(4, 6), slice(10, 12)
    for picture, inside in ((red_disc_left, left), (red_disc_right, right)):
        red, green, blue = picture[:, 7:9, inside].mean(dim=(1, 2))
        assert red > 0.5 and green < -0.3 and blue < -0.3


def test_bytes_cover_the_range():
    ends = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 2, 2)
    assert pictures.show(ends)[0, 0].tolist() == [0, 128, 255]
