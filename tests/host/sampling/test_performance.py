"""Fewer forward passes on a real host: counted, and right where nothing changes between steps."""

import pytest
import torch

from gcfg_pack.gcfg.guidance import Performance
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import counted, guided, relative, stock


def test_refresh_every_second_step(tiny, base, concept, prompts):
    positive, negative = prompts
    patched = apply(base, [Link(model=concept)], performance=Performance(refresh_every=2))
    with counted(base, concept) as calls:
        stock(patched, positive, negative, tiny.latent(), steps=6)
    assert calls == [(1, 1), (0, 2), (0, 1)] * 3  # 12 predictions in place of 18


def test_guider_and_patch_agree(tiny, base, concept, prompts):
    positive, negative = prompts
    links, performance = [Link(model=concept)], Performance(refresh_every=3)
    patched = stock(apply(base, links, performance=performance), positive, negative, tiny.latent(), steps=6)
    guider = Guider(base, negative, [Link(conditioning=positive, scale=2.5), *links], performance=performance)
    assert torch.equal(guided(guider, tiny.latent(), steps=6), patched)
    assert not torch.equal(patched, stock(apply(base, links), positive, negative, tiny.latent(), steps=6))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_cfg_pp"])
def test_neutral_performance_changes_nothing(tiny, base, concept, prompts, sampler):
    positive, negative = prompts
    plain = stock(apply(base, [Link(model=concept)]), positive, negative, tiny.latent(), sampler=sampler)
    neutral = apply(base, [Link(model=concept)], performance=Performance())
    assert torch.equal(stock(neutral, positive, negative, tiny.latent(), sampler=sampler), plain)


def test_reuse_is_exact_where_guidances_do_not_change(tiny, base, prompts):
    """A guidance whose text equals the unconditional's in all but name differs from it by zero at every step."""
    positive, negative = prompts
    same = [[negative[0][0].clone(), {}]]
    performance = Performance(refresh_every=2)
    patched = apply(base, [Link(conditioning=same, scale=3.0)], performance=performance)
    alone = apply(base, [Link(conditioning=same, scale=0.0)], performance=performance)
    with_guidance = stock(patched, positive, negative, tiny.latent(), steps=6)
    assert relative(with_guidance, stock(alone, positive, negative, tiny.latent(), steps=6)) < 1e-3


def test_adaptive_reuse_does_not_depend_on_the_batch(tiny, base, concept, prompts):
    positive, negative = prompts
    patched = apply(base, [Link(model=concept)], performance=Performance(calm_below=0.95))
    latent = tiny.latent(batch=2, seed=3)
    with counted(concept) as calls:
        together = stock(patched, positive, negative, latent, steps=8)
    assert len(calls) < 8  # a random network changes fast: only a high limit makes it calm
    for i in range(2):
        one = {"samples": latent["samples"][i:i + 1], "batch_index": [i]}
        assert relative(together[i:i + 1], stock(patched, positive, negative, one, steps=8)) < 1e-3


@pytest.mark.parametrize("own", [(0.0, 1.0), (0.4, 1.0), (0.0, 0.4)])
def test_concept_window(tiny, base, concept, prompts, own):
    """What it leaves of a guidance's own window, of another model than the base."""
    positive, negative = prompts
    start, end = own
    further = Link(conditioning=tiny.conditioning(3))
    patched = apply(base, [Link(model=concept, start=start, end=end), further],
                    performance=Performance(concept_start=0.2, concept_end=0.6))
    by_hand = apply(base, [Link(model=concept, start=max(start, 0.2), end=min(end, 0.6)), further])
    whole = apply(base, [Link(model=concept), further])
    results = [stock(m, positive, negative, tiny.latent(), steps=8, scheduler="normal")
               for m in (patched, by_hand, whole)]
    assert torch.equal(*results[:2]) and not torch.equal(*results[1:])


def test_a_run_leaves_no_offsets(tiny, base, concept, prompts):
    positive, negative = prompts
    patched = apply(base, [Link(model=concept)], performance=Performance(refresh_every=2, calm_below=0.3))
    results = [stock(patched, positive, negative, tiny.latent()) for _ in range(2)]
    assert torch.equal(*results)


def test_without_a_baseline_nothing_is_reused(tiny, base, concept, prompts):
    """At cfg 1 the host predicts none, and in the second half nothing is measured from it."""
    positive, negative = prompts
    style = tiny.conditioning(3)
    patched = apply(base, [Link(model=concept, end=0.4), Link(conditioning=style, reference="custom",
                                                            reference_conditioning=positive)],
                    performance=Performance(refresh_every=4))
    with counted(base) as calls:
        result = stock(patched, positive, negative, tiny.latent(), cfg=1.0, steps=8, scheduler="normal")
    assert torch.isfinite(result).all()
    rows = [rows for _, rows in calls]
    assert rows[-3:] == [2, 2, 2] and sum(rows) < 3 * 8  # positive and style; before, the style was reused
