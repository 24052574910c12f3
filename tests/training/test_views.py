"""What CLIF's words are shown: whole views, regions inside masks, mixes in the order of their captions."""

import torch

from gcfg.training.data import words
from gcfg.training.data.words import GROUND, SIDE, captions, mix, region, views, whole


def subject(value: float, masked: bool = False):
    """A picture (64, 64) of one grey; of it only the lower right quarter is the subject's."""
    mask = torch.ones(64, 64, 1)
    if masked:
        mask[:, :32], mask[:32] = 0.0, 0.0
    return [("a", torch.full((64, 64, 3), value), mask)]


def test_as_many_of_each_kind_and_mixes_in_both_orders():
    shown = list(views([subject(0.0), subject(1.0), subject(0.2)], count=4, seed=1))
    counted = [who for _, who in shown]
    assert all(counted.count((k,)) == 8 for k in range(3))  # whole and regions
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert counted.count((a, b)) == counted.count((b, a)) == 2
    assert all(view.shape == (SIDE, SIDE, 3) for view, _ in shown)
    again = list(views([subject(0.0), subject(1.0), subject(0.2)], count=4, seed=1))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(shown, again, strict=True))


def test_a_mix_has_the_first_of_its_caption_on_the_left():
    for k in range(10):
        view = mix([subject(1.0)[0], subject(0.0)[0]], 1, k)
        assert float(view[:, :SIDE // 2].mean()) > GROUND > float(view[:, SIDE // 2:].mean())


def test_regions_are_cut_inside_the_mask():
    (_, pixels, mask), = subject(1.0, masked=True)
    inside = [float((region(pixels, mask, 1, k) > GROUND + 0.1).float().mean()) for k in range(20)]
    anywhere = [float((region(pixels, torch.ones_like(mask), 1, k) == 1.0).float().mean()) for k in range(20)]
    assert min(anywhere) == 1.0 and sum(inside) / len(inside) > 0.6  # a quarter of the picture is the subject's


def test_whole_views_are_now_and_then_without_what_is_around():
    (_, pixels, mask), = subject(1.0, masked=True)
    shares = [float((whole(pixels, mask, 1, k) > 0.9).float().mean()) for k in range(40)]
    assert min(shares) < 0.26 < 0.3 < max(shares)


def test_captions_name_all_in_their_order_in_every_template():
    level = (torch.arange(10) + 0.5) / 10
    said = captions([(1, 0)] * 10, level)
    assert said == [template.format("<1> and <0>") for template in words.TEMPLATES]
    assert captions([(2,)], torch.tensor([0.999])) == ["an image of <2>"]
