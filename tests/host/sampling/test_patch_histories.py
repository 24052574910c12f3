"""What a clone and its base have in common, and what of it the module already holds when a run begins."""

import comfy.weight_adapter as kinds
import pytest
import torch
import torch.nn.functional as F

from gcfg_pack.gcfg.host.weights.unmerged import difference
from harness.models.patches import LINEAR, File, loaded
from harness.sampling import counted, gcfg, relative, stock

WEIGHT = f"{LINEAR}.weight"


def check(tiny, base, prompts, both, first=lambda model: None):
    """One copy of the weights against two. ``both`` makes the sampler's MODEL and the concept of one module."""
    model, concept = both(base)
    first(model)
    with counted(base) as calls:
        result = gcfg(model, *prompts, tiny.latent(), concept)
    assert calls == [(0, 3)] * 4
    expected = gcfg(both(tiny.sd15(1))[0], *prompts, tiny.latent(), both(tiny.sd15(1))[1])
    assert relative(result, expected) < 1e-4
    assert relative(result, gcfg(model, *prompts, tiny.latent(), model.clone())) > 1e-3


@pytest.mark.parametrize("kind", ["lora", "dora", "dora_by_input", "diff"])
def test_on_top_of_what_both_carry_in_a_module_that_holds_it(tiny, base, prompts, kind):
    """The norm of a DoRA is that of the weight with the LoRA below it, counted once."""
    def both(model):
        styled = loaded(model, "lora")
        return styled, loaded(styled, kind, -0.5)
    check(tiny, base, prompts, both, first=lambda model: stock(model, *prompts, tiny.latent(), steps=1))


@pytest.mark.parametrize("kind", ["dora", "diff"])
def test_beside_what_the_base_alone_carries_in_a_module_that_holds_it(tiny, base, prompts, kind):
    check(tiny, base, prompts, lambda model: (loaded(model, "lora"), loaded(model, kind)),
          first=lambda model: stock(model, *prompts, tiny.latent(), steps=1))


@pytest.mark.parametrize(("start", "strength"), [(0, 0.5), (16, 1.0)])
def test_the_same_tensors_at_another_strength_or_place(tiny, base, prompts, start, strength):
    data = ("diff", (File().draw(16, 32),))

    def both(model):
        clones = model.clone(), model.clone()
        clones[0].add_patches({(WEIGHT, (0, 0, 16)): data}, 1.0)
        clones[1].add_patches({(WEIGHT, (0, start, 16)): data}, strength)
        return clones
    check(tiny, base, prompts, both)


def test_a_slice_of_the_inputs_that_is_scaled(tiny, base, prompts):
    """It has no form as a step on the output; the whole difference has."""
    file = File()
    pair = kinds.LoRAAdapter(set(), (file.draw(32, 4), file.draw(4, 8), None, None, 1.0 + file.draw(32, 1), None))

    def both(model):
        clone = model.clone()
        clone.add_patches({(WEIGHT, (1, 4, 8)): pair}, 0.7)
        return model, clone
    check(tiny, base, prompts, both)


def test_a_lora_of_a_convolution_in_groups():
    """Its product is a weight of this shape; the two factors are no convolutions in groups."""
    file, x = File(), torch.randn((2, 8, 6, 6), generator=torch.manual_seed(1))
    layer = torch.nn.Conv2d(8, 8, 3, groups=2, padding=1)
    up, down = file.draw(8, 2, 1, 1), file.draw(2, 4, 3, 3)
    pair = kinds.LoRAAdapter(set(), (up, down, None, None, None, None))
    whole = (up.flatten(1) @ down.flatten(1)).view(8, 4, 3, 3)
    made = difference(pair, 0.7, None, layer, tuple(layer.weight.shape))
    assert torch.allclose(made(layer, x), F.conv2d(x, 0.7 * whole, groups=2, padding=1), atol=1e-5)
