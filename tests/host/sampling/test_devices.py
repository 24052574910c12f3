"""MultiGPU CFG Split of newer hosts, on two devices that are both the CPU: "cpu" and "cpu:0"."""

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import counted, gcfg, relative, stock

if not hasattr(ModelPatcher, "deepclone_multigpu"):
    pytest.skip("this host runs on one device", allow_module_level=True)

SECOND = torch.device("cpu", 0)


def split(tiny, model, seed):
    """What MultiGPU CFG Split makes of a MODEL where there are two devices; and the MODEL on the second."""
    model.cached_patcher_init = (tiny.sd15, (seed,))
    clone = model.deepclone_multigpu(new_load_device=SECOND)
    clone.is_multigpu_base_clone = True
    both = model.clone()
    both.set_additional_models("multigpu", [clone])
    return both, clone


def lora(tiny, model, seed=3):
    return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, seed), 1.0, 0.0)[0]


def chain(tiny, base):
    """Concepts over one copy of the weights, a prompt, and a hook's worth of difference between them."""
    return [Link(model=lora(tiny, base)), Link(model=lora(tiny, base, 4), conditioning=tiny.conditioning(3), scale=0.5),
            Link(conditioning=tiny.conditioning(4), scale=-0.7), Link(conditioning=tiny.conditioning(5), scale=0.4)]


def test_rows_of_adapters_on_two_devices(tiny, prompts):
    """1.0 to 4.9, different in each run -> 1e-6: the clone's network ran without the adapters, threads shared rows."""
    positive, negative = prompts
    plain = tiny.sd15(1)
    expected = gcfg(plain, positive, negative, tiny.latent(batch=2), links=chain(tiny, plain))
    base, clone = split(tiny, tiny.sd15(1), 1)
    for _ in range(3):
        with counted(base, clone) as calls:
            result = gcfg(base, positive, negative, tiny.latent(batch=2), links=chain(tiny, base))
        assert sorted(calls) == [(0, 6)] * 4 + [(1, 6)] * 4  # six predictions of two samples, three on each device
        assert relative(result, expected) < 1e-4
    layers = [layer for model in (base, clone) for layer in model.model.diffusion_model.modules()]
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in layers)


def test_a_concept_of_its_own_is_not_cloned(tiny, concept, prompts, monkeypatch):
    positive, negative = prompts
    base, clone = split(tiny, tiny.sd15(1), 1)
    expected = gcfg(tiny.sd15(1), positive, negative, tiny.latent(), concept)
    patched = apply(base, [Link(model=concept, scale=2.5)])
    monkeypatch.setattr(ModelPatcher, "deepclone_multigpu", lambda *args, **kwargs: pytest.fail("cloned"))
    with counted(base, clone, concept) as calls:
        result = stock(patched, positive, negative, tiny.latent())
    assert sorted(calls) == [(0, 1)] * 4 + [(1, 1)] * 4 + [(2, 1)] * 4
    assert relative(result, expected) < 1e-4


def test_split_behind_the_patch(tiny, concept, prompts):
    """The split may follow Apply GCFG to Model: the guidances' models stay where they are."""
    positive, negative = prompts
    patched, clone = split(tiny, apply(tiny.sd15(1), [Link(model=concept, scale=2.5)]), 1)
    assert concept.cached_patcher_init is None  # the host cannot clone it
    with counted(patched, clone) as calls:
        result = stock(patched, positive, negative, tiny.latent())
    assert sorted(calls) == [(0, 1)] * 4 + [(1, 1)] * 4
    assert relative(result, gcfg(tiny.sd15(1), positive, negative, tiny.latent(), concept)) < 1e-4


def test_a_concept_on_a_device_of_its_own(tiny, base, prompts):
    """As Select Model Device puts it there; its result is fetched after every device has its work."""
    positive, negative = prompts
    concept = tiny.sd15(2)
    expected = gcfg(base, positive, negative, tiny.latent(), concept)
    _, apart = split(tiny, concept, 2)
    apart.is_multigpu_base_clone = False
    assert apart.load_device == SECOND
    assert torch.equal(gcfg(base, positive, negative, tiny.latent(), apart), expected)
