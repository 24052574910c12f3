"""Latents of several streams, picture and sound, which newer hosts pack into one."""

import pytest
import torch

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.nodes.grids import GCFGScaleGrid
from harness.models import families
from harness.sampling import relative, stock

NAME = "LTX-2 (video and sound)"
if NAME not in families.available():
    pytest.skip("this host has no model of picture and sound", allow_module_level=True)


@pytest.fixture
def model():
    return families.FAMILIES[NAME].model


def parts(latent):
    return latent.unbind()


def test_a_mask_is_one_of_the_picture(model):
    """A mask on a Guidance was shaped like the packed latent, and crashed."""
    family, base, concept = families.FAMILIES[NAME], model(1), model(2)
    positive, negative, latent = family.conditioning(1), family.conditioning(2), family.latents()
    mask = torch.zeros((1, 4, 4))
    mask[:, :2] = 1.0
    plain, masked, whole = (parts(stock(m, positive, negative, latent, steps=1)) for m in (
        base, apply(base, [Link(model=concept, mask=mask)]), apply(base, [Link(model=concept)])))
    assert torch.allclose(masked[0][..., 2:, :], plain[0][..., 2:, :], atol=1e-5)
    assert torch.allclose(masked[0][..., :2, :], whole[0][..., :2, :], atol=1e-5)
    assert torch.allclose(masked[1], whole[1], atol=1e-5)  # as under the host's own masks, sound is whole
    assert relative(whole[0], plain[0]) > 0.01


def test_scale_grid_joins_the_streams_one_by_one(model):
    family, base, concept = families.FAMILIES[NAME], model(1), model(2)
    latent = GCFGScaleGrid.execute(base, family.conditioning(1), family.conditioning(2), family.latents(), 5, 1, "0, 1",
                                   "1, 2", "euler", "simple", 1.0, concept_model=concept).args[0]["samples"]
    assert [stream.shape[0] for stream in parts(latent)] == [4, 4]
    alone = parts(stock(base, family.conditioning(1), family.conditioning(2), family.latents(), steps=1, cfg=2.0,
                        scheduler="simple"))
    for stream, expected in zip(parts(latent), alone, strict=True):
        assert torch.allclose(stream[1:2], expected, atol=1e-4)
