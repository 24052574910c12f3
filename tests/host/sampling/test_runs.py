"""Before, between and after runs: what is loaded, what is left, what state may not survive."""

import comfy.model_management as management
import comfy.samplers
import pytest
import torch

from gcfg_pack.gcfg.guidance import Schedule, Shaping
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.sampling import gcfg, guided, relative, sampled, stock, through_guider


def weights(patcher):
    return {name: value.clone() for name, value in patcher.model.state_dict().items()}


def unchanged(patcher, before):
    after = patcher.model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_models_stay_as_they_were(tiny, base, concept, prompts):
    positive, negative = prompts
    before, expected = (weights(base), weights(concept)), stock(concept, positive, negative, tiny.latent())
    options = repr(base.model_options), repr(concept.model_options)
    gcfg(base, positive, negative, tiny.latent(), concept)
    assert unchanged(base, before[0]) and unchanged(concept, before[1])
    assert (repr(base.model_options), repr(concept.model_options)) == options
    assert not base.additional_models and not base.wrappers and not concept.wrappers
    assert torch.equal(stock(concept, positive, negative, tiny.latent()), expected)


def test_nothing_leaks_between_runs(tiny, base, concept, prompts):
    positive, negative = prompts
    shaped = Link(model=concept, shaping=Shaping(momentum=-0.5, norm_limit=1.0, parallel=0.0))
    patched = apply(base, [shaped])
    a = stock(patched, positive, negative, tiny.latent())
    b = stock(apply(concept, [Link(model=base)]), positive, negative, tiny.latent())
    assert torch.equal(stock(patched, positive, negative, tiny.latent()), a)
    assert not torch.equal(a, b)
    guider = Guider(base, negative, [Link(conditioning=positive, scale=2.5), shaped])
    assert torch.equal(guided(guider, tiny.latent()), a)
    assert torch.equal(guided(guider, tiny.latent()), a)


def test_interrupt_and_rerun(tiny, base, concept, prompts, monkeypatch):
    positive, negative = prompts
    expected = gcfg(base, positive, negative, tiny.latent(), concept)
    patched = apply(base, [Link(model=concept, scale=2.5)])
    calls = []

    def stop(module, args, output):
        calls.append(1)
        if len(calls) == 2:
            raise management.InterruptProcessingException
    handle = concept.model.diffusion_model.register_forward_hook(stop)
    with pytest.raises(management.InterruptProcessingException):
        stock(patched, positive, negative, tiny.latent())
    handle.remove()
    assert base.model.current_patcher is None and concept.model.current_patcher is None
    assert torch.equal(stock(patched, positive, negative, tiny.latent()), expected)


def test_everything_is_loaded_in_one_go(tiny, base, concept, prompts, monkeypatch):
    positive, negative = prompts
    requests, original = [], management.load_models_gpu
    monkeypatch.setattr(management, "load_models_gpu",
                        lambda models, *args, **kwargs: (requests.append(models), original(models, *args, **kwargs))[1])
    gcfg(base, positive, negative, tiny.latent(), concept, links=[Link(model=tiny.sd15(3))])
    assert len(requests) == 1 and len(requests[0]) == 3


def test_memory_estimate_covers_the_recipe(tiny, base, prompts, monkeypatch):
    positive, negative = prompts
    asked, original = [], management.load_models_gpu

    def load(models, memory_required=0, **kwargs):
        asked.append(memory_required)
        return original(models, memory_required=memory_required, **kwargs)
    monkeypatch.setattr(management, "load_models_gpu", load)
    gcfg(base, positive, negative, tiny.latent())
    gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=tiny.conditioning(s)) for s in (3, 4)])
    assert asked[1] == 2 * asked[0]


def test_weights_of_a_private_copy_are_given_back(tiny, base, prompts):
    import comfy.sd
    positive, negative = prompts
    tuned = comfy.sd.load_lora_for_models(base, None, tiny.lora(base, 3), 1.0, 0.0)[0]
    gcfg(base, positive, negative, tiny.latent(), concept=tuned)
    management.cleanup_models_gc()
    management.cleanup_models()
    modules = {id(loaded.model.model) for loaded in management.current_loaded_models if loaded.model is not None}
    assert id(base.model) in modules
    before = len(modules)
    gcfg(base, positive, negative, tiny.latent(), concept=tuned)
    management.cleanup_models_gc()
    management.cleanup_models()
    assert len({id(m.model.model) for m in management.current_loaded_models if m.model is not None}) == before


def noise_levels(base, steps):
    return comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "karras", steps)


def restart_sigmas(base):
    """Noise levels that go back up once."""
    sigmas = noise_levels(base, 6)
    return torch.cat([sigmas[:5], sigmas[2:]])


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpm_adaptive", "euler"])
def test_neutral_settings_change_nothing(tiny, base, concept, prompts, sampler):
    positive, negative = prompts
    neutral = Link(model=concept, scale=1.5, schedule=Schedule("points", points=((0, 1), (1, 1))),
                   shaping=Shaping(momentum=0.0, norm_limit=1e9, rescale=0.0, zero_init_steps=0))
    links = [Link(model=concept, scale=1.5)]
    plain = through_guider(base, positive, negative, tiny.latent(), links, sampler=sampler)
    shaped = through_guider(base, positive, negative, tiny.latent(), [neutral], sampler=sampler)
    assert relative(shaped, plain) < 1e-3


def test_restarts_keep_momentum_sane(tiny, base, concept, prompts):
    """Going back to a higher noise level continues from the sum there, whatever was evaluated in between."""
    positive, negative = prompts
    guider = Guider(base, negative, [Link(conditioning=positive), Link(model=concept, shaping=Shaping(momentum=-0.3))])
    results = [sampled(guider, tiny.latent(), restart_sigmas(base)) for _ in range(2)]
    assert torch.equal(*results) and torch.isfinite(results[0]).all()


def test_zero_init_leaves_the_latent(tiny, base, concept, prompts):
    positive, negative = prompts
    all_steps = Link(model=concept, shaping=Shaping(zero_init_steps=3))
    result = gcfg(base, positive, negative, tiny.latent(), links=[all_steps], steps=4)
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), links=[Link(model=concept)])) > 0.01
    sigmas = noise_levels(base, 4)
    first = sampled(Guider(base, negative, [all_steps]), tiny.latent(), sigmas[:4])
    start = torch.randn((1, 4, 8, 8), generator=torch.manual_seed(5)) * (1 + sigmas[0] ** 2) ** 0.5
    assert torch.allclose(first, base.model.process_latent_out(start), rtol=1e-5)


def test_a_run_that_fails_to_start_leaves_nothing(tiny, base, concept, prompts, monkeypatch):
    from gcfg_pack.gcfg.host.sampling import run
    positive, negative = prompts
    patched = apply(base, [Link(model=concept)])
    expected = stock(patched, positive, negative, tiny.latent())
    with monkeypatch.context() as broken:
        broken.setattr(run.Run, "_register_hooks", lambda self, owner: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stock(patched, positive, negative, tiny.latent())
    assert list(patched.get_attachment("gcfg").models.values()) == [concept]
    assert torch.equal(stock(patched, positive, negative, tiny.latent()), expected)
