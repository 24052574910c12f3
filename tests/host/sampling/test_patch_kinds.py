"""Every kind of patch that the host's loaders make, on rows of one batch: equal to the same patch merged."""

from contextlib import contextmanager

import comfy.hooks
import comfy.model_management
import comfy.sd
import comfy.weight_adapter as kinds
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.weights.rows import NotRowwise, row_adapter
from harness.models.patches import CONV, FILES, LINEAR, File, injected, loaded
from harness.sampling import counted, gcfg, relative, stock
from harness.twins import hook


def check(tiny, base, prompts, change):
    """One copy of the weights against two, and that the change is one."""
    positive, negative = prompts
    clone, apart = change(base), change(tiny.sd15(1))
    assert clone.patches or clone.injections
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(batch=2), clone)
    assert calls == [(0, 6)] * 4
    expected = gcfg(base, positive, negative, tiny.latent(batch=2), apart)
    assert relative(result, expected) < 1e-4
    # the difference between two models is much larger than that between one copy and two
    assert relative(result, gcfg(base, positive, negative, tiny.latent(batch=2))) > 0.01


@pytest.mark.parametrize("kind", FILES)
def test_on_rows_as_merged(tiny, base, prompts, kind):
    check(tiny, base, prompts, lambda model: loaded(model, kind))


@pytest.mark.parametrize("kind", ["dora", "oft", "set", "loha"])
def test_stacked_on_each_other(tiny, base, prompts, kind):
    check(tiny, base, prompts, lambda model: loaded(loaded(loaded(model, "lora"), kind), "lokr", -0.4))


@pytest.mark.parametrize("kind", ["lora", "lokr", "dora", "oft"])
def test_taken_off_the_base_again(tiny, base, prompts, kind):
    """The base carries the patch, the concept does not."""
    positive, negative = prompts
    patched = loaded(base, kind)
    with counted(base) as calls:
        result = gcfg(patched, positive, negative, tiny.latent(), loaded(base, "diff"))
    assert calls == [(0, 3)] * 4
    expected = gcfg(loaded(tiny.sd15(1), kind), positive, negative, tiny.latent(), loaded(tiny.sd15(1), "diff"))
    assert relative(result, expected) < 1e-4


def half(start):
    return (0, start, 16)


def on_slices(model):
    """As LoRAs with diffusers keys cut fused weights: on slices of outputs, one of which it scales, and of inputs."""
    file, clone, weight = File(7), model.clone(), f"{LINEAR}.weight"
    for start, keep in ((0, 1.0), (16, 0.5)):
        pair = kinds.LoRAAdapter(set(), (file.draw(16, 4), file.draw(4, 32), None, None, None, None))
        clone.add_patches({(weight, half(start)): pair}, 0.7, keep)
    magnitude = kinds.LoRAAdapter(set(), (file.draw(16, 4), file.draw(4, 32), 4.0, None, 1.0 + file.draw(16, 1), None))
    clone.add_patches({(weight, half(8)): magnitude}, 0.7)
    clone.add_patches({(weight, (1, 4, 8)): ("diff", (file.draw(32, 8),))}, 0.7)
    return clone


def test_on_slices_of_fused_weights(tiny, base, prompts):
    check(tiny, base, prompts, on_slices)


def with_function(model):
    """As the host reorders the differences of some fused layers."""
    file, clone = File(8), model.clone()
    pair = kinds.LoRAAdapter(set(), (file.draw(32, 4), file.draw(4, 32), None, None, None, None))
    clone.add_patches({(f"{LINEAR}.weight", None, lambda d: torch.cat(d.chunk(2)[::-1])): pair}, 0.7)
    clone.add_patches({(f"{CONV}.weight", None, lambda d: d.flip(0)): ("diff", (file.draw(32, 32, 3, 3),))}, 0.7)
    return clone


def test_with_a_function(tiny, base, prompts):
    check(tiny, base, prompts, with_function)


def test_scaled_weights(tiny, base, prompts):
    def scaled(model):
        clone = model.clone()
        clone.add_patches({f"{LINEAR}.weight": ("diff", (File().draw(32, 32),))}, 0.5, 0.6)
        clone.add_patches({f"{CONV}.bias": ("diff", (File().draw(32),))}, 0.5, -1.0)
        return clone
    check(tiny, base, prompts, scaled)


bypassed = pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"),
                              reason="this ComfyUI has no bypass loader")


@bypassed
@pytest.mark.parametrize("kind", ["boft", "dora", "dora_by_input", "dora_on_loha"])
def test_of_a_bypass_loader(tiny, base, prompts, kind):
    """As the host runs it on weights of its own: a BOFT turns the bias too, a DoRA goes without its magnitude."""
    check(tiny, base, prompts, lambda model: injected(model, kind))


@bypassed
def test_of_two_bypass_loaders(tiny, base, prompts):
    """What comes after a turn of a layer's output comes after it on rows, too."""
    def twice(model):
        clone, (further,) = injected(model, "boft"), injected(model, "lora").injections.values()
        clone.set_injections("further", further)
        return clone
    check(tiny, base, prompts, twice)


@bypassed
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "glora", "oft"])
def test_of_a_bypass_loader_against_merged_weights(tiny, base, prompts, kind):
    positive, negative = prompts
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), injected(base, kind))
    assert calls == [(0, 3)] * 4
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), loaded(tiny.sd15(1), kind))) < 1e-3
    assert relative(result, gcfg(base, positive, negative, tiny.latent())) > 0.01


@bypassed
@pytest.mark.parametrize("kind", ["glora", "oft"])
def test_what_the_hosts_bypass_cannot_run_alone(tiny, base, prompts, kind):
    """Once it can, rows have to equal it rather than merged weights."""
    positive, negative = prompts
    with pytest.raises(RuntimeError, match="view size|cannot be multiplied"):
        stock(injected(base, kind), positive, negative, tiny.latent())


@bypassed
def test_of_a_bypass_loader_with_patches_and_hooks(tiny, base, prompts):
    positive, negative = prompts
    hooked = hook("sd15", tiny.conditioning(3), True)
    one, two = (gcfg(base, positive, negative, tiny.latent(), links=[Link(
        model=injected(loaded(model, "lora"), "boft"), conditioning=hooked)]) for model in (base, tiny.sd15(1)))
    assert relative(one, two) < 1e-4


@bypassed
def test_of_a_bypass_loader_on_the_base(tiny, base, prompts):
    """A turn that the base's own module makes cannot be taken back: the other model gets a copy, or a sentence."""
    positive, negative = prompts
    result = gcfg(injected(base, "boft"), positive, negative, tiny.latent(), loaded(base, "lora"))
    expected = gcfg(injected(tiny.sd15(1), "boft"), positive, negative, tiny.latent(), loaded(tiny.sd15(1), "lora"))
    assert relative(result, expected) < 1e-4
    turned = injected(base, "boft")
    with pytest.raises(ValueError, match="is used twice.*ordinary loader"):
        gcfg(turned, positive, negative, tiny.latent(), loaded(turned, "lora"))


@pytest.mark.parametrize("kind", ["lora", "dora", "oft", "set"])
def test_under_a_lora_hook(tiny, base, prompts, kind):
    """The host adds a conditioning's hook to the patched weight, whatever the patch: DoRA 0.01 -> 0, OFT 0.07 -> 0."""
    positive, negative = prompts
    hooked = hook("sd15", tiny.conditioning(3), True)
    one, two = (gcfg(base, positive, negative, tiny.latent(), links=[
        Link(model=loaded(model, kind), conditioning=hooked)]) for model in (base, tiny.sd15(1)))
    assert relative(one, two) < 1e-4


@pytest.mark.parametrize("kind", ["dora", "oft", "set"])
def test_a_hook_that_scales_what_an_adapter_adds_to_takes_a_copy(tiny, base, prompts, kind, caplog):
    """It scaled the base's weight without the adapter's part: DoRA 0.05, OFT 0.17, set 0.10 -> 0."""
    positive, negative = prompts
    group = comfy.hooks.create_hook_lora(getattr(File(5), kind)(), 0.7, 0.0)
    hooked = [[tiny.conditioning(3)[0][0], {"hooks": group}]]

    def run(model, file):
        caplog.clear()
        concept = comfy.sd.load_lora_for_models(model, None, file, 0.7, 0.0)[0]
        with caplog.at_level("INFO"):
            result = gcfg(base, positive, negative, tiny.latent(), links=[Link(model=concept, conditioning=hooked)])
        return result, sum("second copy of the weights is made" in r.message for r in caplog.records)
    for file, copies in ((File().lora(), 1), (tiny.lora(base, only="attn2"), 0)):  # the same layers, and others
        (one, made), (two, _) = run(base, file), run(tiny.sd15(1), file)
        assert made == copies
        assert relative(one, two) < 1e-4


@bypassed
@pytest.mark.parametrize(("kind", "bypass"), [("dora", "lora"), ("oft", "lora"), ("set", "lora"), ("dora", "lokr"),
                                              ("dora", "dora"), ("dora", "boft")])
def test_a_hook_that_scales_what_a_bypass_adapter_adds_to(tiny, base, prompts, kind, bypass):
    """Such an adapter acts behind the layer, whatever the hook made of it: refused -> rows, as in its own model."""
    positive, negative = prompts
    group = comfy.hooks.create_hook_lora(getattr(File(5), kind)(), 0.7, 0.0)
    hooked = [[tiny.conditioning(3)[0][0], {"hooks": group}]]
    one, two = (gcfg(base, positive, negative, tiny.latent(), links=[
        Link(model=injected(model, bypass), conditioning=hooked)]) for model in (base, tiny.sd15(1)))
    assert relative(one, two) < 1e-4


@bypassed
@pytest.mark.parametrize("kind", ["oft", "glora"])
def test_a_hook_that_scales_what_a_bypass_adapter_turns_is_refused(base, kind):
    """On rows these are what their merged weights are, which the hook would scale."""
    hooks = comfy.hooks.create_hook_lora(File(5).dora(), 0.7, 0.0).hooks
    assert row_adapter(injected(base, "lora"), base, hooks).layers
    with pytest.raises(NotRowwise, match="a LoRA hook does more than to add"):
        row_adapter(injected(base, kind), base, hooks)


def test_several_kinds_in_one_chain(tiny, base, prompts):
    positive, negative = prompts

    def links(model):
        return [Link(model=loaded(model, kind), scale=0.4) for kind in ("lora", "dora", "lokr", "diff")]
    with counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), links=links(base))
    assert calls == [(0, 6)] * 4
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), links=links(tiny.sd15(1)))) < 1e-4


def merge(model):
    """As a merge node gives it: every weight changed."""
    clone, gen = model.clone(), torch.manual_seed(4)
    clone.add_patches({f"diffusion_model.{key}": ("diff", (0.02 * torch.randn(value.shape, generator=gen),))
                       for key, value in model.model.diffusion_model.state_dict().items()}, 1.0)
    return clone


def test_a_change_as_large_as_the_model_becomes_a_copy(tiny, base, prompts, caplog):
    positive, negative = prompts
    with pytest.raises(NotRowwise, match="as large as the model"):
        row_adapter(merge(base), base)
    with caplog.at_level("INFO"), counted(base) as calls:
        result = gcfg(base, positive, negative, tiny.latent(), merge(base))
    assert calls == [(0, 1), (0, 2)] * 4  # the copy brings the counter along
    assert sum("second copy of the weights" in r.message for r in caplog.records) == 1
    assert relative(result, gcfg(base, positive, negative, tiny.latent(), merge(tiny.sd15(1)))) < 1e-5


def test_a_pack_that_wraps_a_run_sees_the_module_that_runs(tiny, base, prompts):
    """It was handed the base's, into which it would have written, in place of the copy."""
    positive, negative = prompts
    merged, seen, ran = merge(base), [], set()

    def wrapper(executor, *args, **kwargs):
        seen.append(executor.class_obj.model_patcher.model.diffusion_model)
        return executor(*args, **kwargs)
    merged.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "pack", wrapper)
    with noting(base.model.diffusion_model, ran):
        gcfg(base, positive, negative, tiny.latent(), merged)
    assert set(map(id, seen)) == ran - {id(base.model.diffusion_model)} and len(ran) == 2


@contextmanager
def noting(network, ran):
    """Notes which networks run, copies of one included: they bring the hook along."""
    handle = network.register_forward_hook(lambda module, *_: ran.add(id(module)))
    yield
    handle.remove()


def test_a_copy_is_made_once_as_long_as_the_inputs_stay(tiny, base, prompts, caplog):
    positive, negative = prompts
    merged = merge(base)

    def run(model=merged, on=base):
        caplog.clear()
        with caplog.at_level("INFO"):
            made = gcfg(on, positive, negative, tiny.latent(), model)
        return made, sum("second copy of the weights" in r.message for r in caplog.records)
    first, copies = run()
    gcfg(base, positive, negative, tiny.latent(), tiny.sd15(2))  # the host may unload it meanwhile
    comfy.model_management.unload_all_models()
    again, more = run()
    assert (copies, more) == (1, 0) and torch.equal(first, again)
    assert run(merged.clone())[1] == 0
    other = loaded(merged, "lora")
    assert run(other)[1] == 1 and run(other)[1] == 0
    perturbed = merged.clone()
    perturbed.set_model_attn1_replace(lambda q, k, v, extra_options: v, "middle", 0)
    assert run(perturbed)[1] == 1
    sampling = merged.clone()
    sampling.add_object_patch("latent_format", merged.get_model_object("latent_format"))
    assert run(sampling)[1] == 1


def test_an_adapter_is_prepared_once_as_long_as_the_patches_stay(tiny, base, prompts):
    positive, negative = prompts
    clone = loaded(base, "dora")
    first = row_adapter(clone, base)
    expected = gcfg(base, positive, negative, tiny.latent(), clone)
    assert row_adapter(clone, base) is first and row_adapter(clone.clone(), base) is first
    assert torch.equal(gcfg(base, positive, negative, tiny.latent(), clone), expected)
    assert row_adapter(clone, loaded(base, "lora")) is not first
    again = row_adapter(clone, base)
    assert row_adapter(loaded(clone, "lora"), base) is not again


def test_an_adapter_is_prepared_anew_for_other_hooks(tiny, base):
    adding, scaling = (comfy.hooks.create_hook_lora(getattr(File(5), kind)(), 0.7, 0.0).hooks
                       for kind in ("lora", "dora"))
    clone = loaded(base, "lora")
    kept = row_adapter(clone, base)
    assert row_adapter(clone, base, adding) is not kept
    with pytest.raises(NotRowwise, match="a LoRA hook does more than to add"):
        row_adapter(clone, base, scaling)


@bypassed
def test_an_adapter_is_prepared_anew_for_another_injection(tiny, base):
    """Which changes no mark of the patches."""
    adding = injected(base, "lora")
    layer = LINEAR.partition(".")[2]
    assert row_adapter(adding, base).layers[layer].steps
    assert row_adapter(injected(adding, "boft"), base).layers[layer].outputs
