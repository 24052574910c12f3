"""Named methods on real tiny models equal their formulas; a guidance perpendicular to another."""

import comfy.sd
import pytest
import torch

from gcfg_pack.gcfg.guidance import Shaping
from gcfg_pack.gcfg.host.recipes.methods import METHODS
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.nodes.insight import GCFGPreset
from harness.sampling import counted, gcfg, guided, relative, stock

STEPS = 4


@pytest.fixture
def prompts(tiny):
    return tiny.conditioning(1), tiny.conditioning(2), tiny.conditioning(3)


def denoised(tiny, model, conditioning, negative):
    """A model's denoised prediction at the first noise level, as latent: one Euler step to zero gives it."""
    return stock(model, conditioning, negative, tiny.latent(), cfg=1.0, steps=1)


def perturbed(tiny):
    """The base under the stock way to make self-attention the identity."""
    model = tiny.sd15(seed=1)
    model.set_model_attn1_replace(lambda q, k, v, extra_options, mask=None: v, "middle", 0)
    return model


def mixed(tiny, weight):
    """The base with weights interpolated by hand."""
    model, tuned = tiny.sd15(seed=1), tiny.sd15(seed=2).model.diffusion_model.state_dict()
    own = model.model.diffusion_model.state_dict()
    model.model.diffusion_model.load_state_dict({k: torch.lerp(v, tuned[k], weight) for k, v in own.items()})
    return model


def across(a, b):
    return a - (a * b).sum() / (b * b).sum() * b


FORMULAS = {  # by the names of the denoised predictions: 0 null, p positive, s second; of the second model t0 and tp
    "CFG": lambda d: d["0"] + 3.0 * (d["p"] - d["0"]),
    "composable diffusion": lambda d: d["0"] + 3.0 * (d["p"] - d["0"]) + 0.7 * (d["s"] - d["0"]),
    "InstructPix2Pix": lambda d: d["0"] + 0.7 * (d["s"] - d["0"]) + 3.0 * (d["p"] - d["s"]),
    "Perp-Neg": lambda d: d["0"] + 3.0 * (d["p"] - d["0"] - 0.7 * across(d["s"] - d["0"], d["p"] - d["0"])),
    "AutoGuidance": lambda d: 3.0 * d["p"] + (1 - 3.0) * d["tp"],
    "perturbed-attention guidance": lambda d: d["0"] + 3.0 * (d["p"] - d["0"]) + 0.7 * (d["p"] - d["pag"]),
    "domain guidance": lambda d: 3.0 * d["tp"] + (1 - 3.0) * d["0"],
    "personalization guidance": lambda d: d["mixed"] + 3.0 * (d["tp"] - d["mixed"]),
    "class-guided": lambda d: d["0"] + 3.0 * (d["s"] - d["0"]) + 0.7 * (d["tp"] - d["s"]),
    "concept-centric": lambda d: d["0"] + 3.0 * (d["p"] - d["0"]) + 0.7 * (d["t0"] - d["0"]),
    "concept across control": lambda d: d["0"] + 3.0 * (d["p"] - d["s"]) + 0.7 * across(d["t0"] - d["0"],
                                                                                       d["p"] - d["s"]),
    "LoRA guidance": lambda d: d["p"] + 3.0 * (d["tp"] - d["p"]),
    "concept on a distilled model": lambda d: d["p"] + 3.0 * (d["ts"] - d["s"]),
}


@pytest.mark.parametrize("name", METHODS)
def test_presets_equal_their_formulas(tiny, base, concept, prompts, name):
    positive, negative, second = prompts
    chain = GCFGPreset.execute(name, 3.0, 0.7, 0.3, positive=positive, conditioning_2=second, model=base,
                               model_2=concept).args[0]
    result = guided(Guider(base, negative, chain), tiny.latent(), steps=1)
    models = {"0": (base, negative), "p": (base, positive), "s": (base, second), "t0": (concept, negative),
              "tp": (concept, positive), "ts": (concept, second), "pag": (perturbed(tiny), positive),
              "mixed": (mixed(tiny, 0.3), negative)}
    found = {key: denoised(tiny, model, conditioning, negative) for key, (model, conditioning) in models.items()}
    assert relative(result, FORMULAS[name](found)) < 5e-4
    node = gcfg(base, positive, negative, tiny.latent(), control_scale=0.0, links=chain, steps=1)
    assert relative(node, result) < 5e-4


def test_concept_across_control_without_a_class(tiny, base, concept, prompts):
    positive, negative, _ = prompts
    chain = GCFGPreset.execute("concept across control", 3.0, 0.7, 0.0, positive=positive, model_2=concept).args[0]
    result = guided(Guider(base, negative, chain), tiny.latent(), steps=1)
    d0, dp, dc = (denoised(tiny, model, c, negative)
                  for model, c in ((base, negative), (base, positive), (concept, negative)))
    assert relative(result, d0 + 3.0 * (dp - d0) + 0.7 * across(dc - d0, dp - d0)) < 5e-4


def test_concept_centric_without_a_prompt_is_the_rectified_form(tiny, base, concept, prompts):
    _, negative, _ = prompts
    chain = GCFGPreset.execute("concept-centric", 2.5, 1.5, 0.0, model_2=concept).args[0]
    with counted(base, concept) as calls:
        result = guided(Guider(base, negative, chain), tiny.latent(), steps=1)
    assert calls == [(1, 1), (0, 1)]
    d0, dc = denoised(tiny, base, negative, negative), denoised(tiny, concept, negative, negative)
    assert relative(result, d0 + 1.5 * (dc - d0)) < 1e-4


@pytest.mark.parametrize("steps", [4, 8])
def test_lora_guidance_without_an_unconditional(tiny, base, prompts, steps):
    """As on a distilled base at cfg 1: a loop by hand, two rows a step over one copy, none of them unconditional."""
    positive, negative, _ = prompts

    def with_lora(model):
        return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, 3), 1.0, 0.0)[0]
    chain = GCFGPreset.execute("LoRA guidance", 1.7, 0.0, 0.0, positive=positive, model_2=with_lora(base)).args[0]
    with counted(base) as calls:
        result = guided(Guider(base, negative, chain), tiny.latent(), steps=steps)
    assert calls == [(0, 2)] * steps
    assert torch.equal(result, guided(Guider(base, tiny.conditioning(9), chain), tiny.latent(), steps=steps))
    apart = GCFGPreset.execute("AutoGuidance", 1.7, 0.0, 0.0, positive=positive, model_2=base).args[0]
    expected = guided(Guider(with_lora(tiny.sd15(seed=1)), negative, apart), tiny.latent(), steps=steps)
    assert relative(result, expected) < 1e-3  # the same line between two models, from its other end


@pytest.mark.parametrize("steps", [4, 8])
def test_concept_on_a_distilled_model(tiny, base, concept, prompts, steps):
    positive, negative, second = prompts
    chain = GCFGPreset.execute("concept on a distilled model", 0.8, 0.0, 0.0, positive=positive, conditioning_2=second,
                               model_2=concept).args[0]
    result = guided(Guider(base, negative, chain), tiny.latent(), steps=steps)
    other = GCFGPreset.execute("concept on a distilled model", 0.8, 0.0, 0.0, positive=positive,
                               model_2=concept).args[0]
    assert torch.allclose(guided(Guider(base, second, other), tiny.latent(), steps=steps), result, rtol=1e-3, atol=1e-3)
    links = [Link(model=concept, conditioning=second, scale=0.8, reference="custom", reference_model=base,
                  reference_conditioning=second)]
    assert relative(stock(apply(base, links), positive, negative, tiny.latent(), cfg=1.0, steps=steps), result) < 1e-4


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_personalization_ends_are_domain_guidance_and_cfg_of_the_tuned_model(tiny, base, concept, prompts, weight):
    positive, negative, _ = prompts
    chain = GCFGPreset.execute("personalization guidance", 3.0, 0.0, weight, positive=positive, model=base,
                               model_2=concept).args[0]
    with counted(base, concept) as calls:
        result = guided(Guider(base, negative, chain), tiny.latent(), steps=1)
    assert calls == [(1, 1 + int(weight)), (0, 1)]
    tuned = denoised(tiny, concept, positive, negative)
    reference = denoised(tiny, concept if weight else base, negative, negative)
    assert relative(result, reference + 3.0 * (tuned - reference)) < 5e-4


def test_presets_add_up_with_other_guidances(tiny, base, concept, prompts):
    positive, negative, second = prompts
    first = GCFGPreset.execute("CFG", 3.0, 0.0, 0.0, positive=positive).args[0]
    both = GCFGPreset.execute("domain guidance", 1.5, 0.0, 0.0, guidance=first, positive=second,
                              model_2=concept).args[0]
    assert [link.name for link in both] == ["prompt", "domain"]


@pytest.mark.parametrize("name", METHODS)
def test_presets_say_what_is_missing(name):
    with pytest.raises(ValueError, match=f"{name} needs") as caught:
        GCFGPreset.execute(name, 3.0, 1.0, 0.0)
    assert all(f"'{socket}'" in str(caught.value) for socket in METHODS[name].needs)


def test_perturbed_attention_needs_a_unet(tiny, prompts):
    with pytest.raises(ValueError, match="needs a UNet with a middle block"):
        GCFGPreset.execute("perturbed-attention guidance", 3.0, 1.0, 0.0, positive=prompts[0], model=tiny.sd3())


def test_perpendicular_through_guider_and_patch(tiny, base, prompts):
    """The guidance that it is measured against may be the sampler's own: equal predictions still run once."""
    positive, negative, second = prompts
    other = Link(conditioning=positive)
    away = Link(conditioning=second, scale=-1.5, perpendicular_to=other)
    with counted(base) as calls:
        patched = stock(apply(base, [away]), positive, negative, tiny.latent())
    assert calls == [(0, 3)] * STEPS
    guider = Guider(base, negative, [Link(conditioning=positive, scale=2.5), away])
    assert torch.equal(guided(guider, tiny.latent()), patched)
    assert relative(patched, stock(apply(base, [Link(conditioning=second, scale=-1.5)]), positive, negative,
                                   tiny.latent())) > 1e-3


def test_perpendicular_first_guidance_does_not_take_the_hosts_path(tiny, base, prompts):
    positive, negative, second = prompts
    away = Link(conditioning=second, scale=-1.5, perpendicular_to=Link(conditioning=positive))
    result = guided(Guider(base, negative, [away]), tiny.latent(), steps=1)
    d0, dp, ds = (denoised(tiny, base, c, negative) for c in (negative, positive, second))
    assert relative(result, d0 - 1.5 * across(ds - d0, dp - d0)) < 1e-4
    shaped = Link(conditioning=second, scale=-1.5, perpendicular_to=Link(conditioning=positive),
                  shaping=Shaping(norm_limit=1e9))
    assert relative(guided(Guider(base, negative, [shaped]), tiny.latent(), steps=1), result) < 1e-4


def test_perpendicular_to_something_relative_is_refused(base, prompts):
    other = Link(conditioning=prompts[0], reference="previous guidance")
    with pytest.raises(ValueError, match="must not be measured from a previous one"):
        apply(base, [Link(conditioning=prompts[2], perpendicular_to=other)])
