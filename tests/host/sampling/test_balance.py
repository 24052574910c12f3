"""A guidance whose size is a share of the control guidance's, read from the trace of real runs."""

import pytest
import torch

from gcfg_pack.gcfg.guidance import Schedule, Shaping
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.gcfg.host.sampling.tracing import trace_of
from harness.models import families
from harness.sampling import gcfg, guided, relative, stock

HALF = Shaping(balance=0.5)
PICTURE_AND_SOUND = "LTX-2 (video and sound)"


def shares(source):
    """For each step of the last run: the size of the second guidance over that of the first, the control guidance."""
    return [reading.sizes[1] / reading.sizes[0] for reading in trace_of(source).read()]


@pytest.mark.parametrize("form", ["guider", "patch", "reference of its own"])
def test_the_share_is_kept_at_every_step(tiny, base, concept, form):
    positive, negative, style = map(tiny.conditioning, (1, 2, 3))
    schedule = Schedule("constant", start_value=0.8)
    custom = {"reference": "custom", "reference_conditioning": style} if form == "reference of its own" else {}
    link = Link(model=concept, scale=3.0, schedule=schedule, shaping=HALF, **custom)
    if form == "patch":
        source = apply(base, [link])
        stock(source, positive, negative, tiny.latent(), cfg=4.0)
    else:
        source = Guider(base, negative, [Link(conditioning=positive, scale=4.0), link])
        guided(source, tiny.latent())
    assert shares(source) == pytest.approx([3.0 * 0.8 * 0.5] * 4, rel=1e-4)


def test_streams_of_picture_and_sound_count_together():
    if PICTURE_AND_SOUND not in families.available():
        pytest.skip("this host has no model of picture and sound")
    family = families.FAMILIES[PICTURE_AND_SOUND]
    positive, negative = family.conditioning(1), family.conditioning(2)
    source = apply(family.model(1), [Link(model=family.model(2), scale=1.0, shaping=HALF)])
    stock(source, positive, negative, family.latents(), steps=2)
    assert shares(source) == pytest.approx([0.5] * 2, rel=1e-4)


def test_a_mask_holds_the_share_inside(tiny, base, concept):
    """With the concept everywhere and with it on half of the picture: outside nothing changes, inside it acts."""
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    half = torch.zeros((1, 64, 64))
    half[:, :, :32] = 1.0
    plain, masked = (stock(apply(base, [Link(model=concept, scale=scale, mask=half, shaping=HALF)]), positive, negative,
                           tiny.latent(), steps=1) for scale in (0.0, 1.0))
    middle = plain.shape[-1] // 2
    assert torch.allclose(masked[..., middle:], plain[..., middle:], atol=1e-5)
    assert relative(masked[..., :middle], plain[..., :middle]) > 0.01


def test_without_a_control_guidance_it_is_refused(tiny, base, concept):
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    link = Link(model=concept, shaping=HALF, name="Faces")
    with pytest.raises(ValueError, match="Faces: balance is a share of the control guidance"):
        gcfg(base, positive, negative, tiny.latent(), control_scale=0.0, links=[link])
    with pytest.raises(ValueError, match="Faces: balance"):
        stock(apply(base, [link]), positive, negative, tiny.latent(), cfg=0.0)
    with pytest.raises(ValueError, match="Faces: balance"):
        guided(Guider(base, negative, [link]), tiny.latent())
