"""The twin law on drawn cases: chains x stock patches x conditionings x kinds of model x families, on the real host.

A guidance from a model with the base's exact weights, measured from what it equals, changes nothing; a scale of 1e-4
moves one step by about 1e-4; the order of guidances, the split of batches, and one copy against two models change
nothing. ``pytest -m fuzz`` draws five hundred cases; the ordinary run draws forty, the same every time.
"""

import pytest
import torch
from comfy_extras import nodes_tomesd
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.node import call
from harness.sampling import relative, stock, without_free_memory
from harness.twins import CONCEPTS, EVERYWHERE, cases, twin_of

SMALL = 1e-4


def twins_change_nothing(case):
    base, style = case.base(), case.prompt(2)
    twin = base.clone() if case.twin == "clone" else twin_of(base, case)
    links = [Link(model=twin, scale=3.0),
             Link(model=twin, scale=-1.5, conditioning=case.positive, reference="custom",
                  reference_conditioning=case.positive),
             Link(model=twin, scale=2.0, conditioning=style, reference="custom", reference_conditioning=style)]
    assert relative(case.sample(apply(base, links)), case.sample(base)) < 2e-3


def small_scales_move_little(case):
    base = case.base()
    patched = apply(base, case.chain(base, SMALL))
    assert relative(case.sample(patched, steps=1), case.sample(base, steps=1)) < 1e-2


def order_changes_nothing(case):
    base = case.base()
    links = case.chain(base)
    other = [links[i] for i in case.order]
    assert relative(case.sample(apply(base, links)), case.sample(apply(base, other))) < 2e-3


def memory_changes_nothing(case):
    base = case.base()
    patched = apply(base, case.chain(base))
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_free_memory(monkeypatch, base)
        short, alone = case.sample(patched), case.sample(base)
    if relative(alone, case.sample(base)) < 1e-4:  # the host's own patches may need a whole batch
        assert relative(short, case.sample(patched)) < 2e-3


def one_copy_equals_two(case):
    base = case.base()
    apart = twin_of(base, case)
    results = [case.sample(apply(base, [
        Link(model=CONCEPTS.get(kind, CONCEPTS["clone"])(m), conditioning=case.prompt(c), scale=s)
        for kind, c, s, *_ in case.links])) for m in (base, apart)]
    assert relative(*results) < 5e-3


def check(law, case):
    """A law on a case; what the host itself cannot sample is none (LazyCache with EasyCache, SAG on some areas)."""
    try:
        law(case)
    except (AttributeError, TypeError) as error:
        try:
            case.sample(case.base())
        except type(error):
            reject()
        raise
    except AssertionError:
        if merges_by_rounding(case):
            reject()
        raise


def merges_by_rounding(case):
    """True if token merging, which sorts, makes another picture of rounding, in stock alone.

    Beside NAG, 1e-7 of the weights' spread has moved one by 0.3 in one of five tries, and else by 3e-5.
    """
    base = case.base()
    return "tomesd" in case.patches and any(
        relative(case.sample(rounded(model, size, seed)), case.sample(model)) > 5e-3
        for model in (CONCEPTS["clone"](base), base) for size in (1e-6, 3e-6) for seed in range(5))


def rounded(model, size, seed):
    """A MODEL whose weights are off by a part of their spread, as by rounding."""
    clone, gen = model.clone(), torch.Generator().manual_seed(seed)
    clone.add_patches({f"diffusion_model.{key}": ("diff", (size * spread * torch.randn(value.shape, generator=gen),))
                       for key, value in model.model.diffusion_model.state_dict().items()
                       if (spread := float(value.std(correction=0)))}, 1.0)
    return clone


LAWS = [twins_change_nothing, small_scales_move_little, order_changes_nothing, memory_changes_nothing,
        one_copy_equals_two]


def test_token_merging_of_the_host_depends_on_what_else_is_drawn(tiny, base, prompts):
    """Stock against stock, with one more number drawn before each layer: why the drawn cases fix what it draws."""
    positive, negative = prompts
    latent = tiny.latent(2, height=16, width=16)

    def drawing(model, numbers):
        clone = model.clone()
        clone.set_model_attn1_patch(lambda q, k, v, extra: (torch.rand(numbers), (q, k, v))[1])
        return call(nodes_tomesd.TomePatchModel, clone, 0.3)[0]
    none, one = (stock(EVERYWHERE["nag"](drawing(base, n)), positive, negative, latent) for n in (0, 1))
    assert relative(one, none) > 5e-3


@given(case=cases(), law=st.sampled_from(LAWS))
@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_twin_law(case, law):
    check(law, case)


@pytest.mark.fuzz
@given(case=cases(), law=st.sampled_from(LAWS))
@settings(max_examples=500, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
def test_twin_law_at_length(case, law):
    check(law, case)
