"""What cannot work is refused before sampling, in a sentence that names the models and the remedy."""

import comfy.hooks
import nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras import nodes_differential_diffusion, nodes_model_advanced, nodes_pag

from gcfg_pack.gcfg.host.concepts.convert import convert
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.nodes.guidance import GCFGGuidance
from harness.models.weights import draw
from harness.node import call
from harness.sampling import counted, gcfg, guided, stock


def test_other_latents(tiny, base):
    with pytest.raises(ValueError, match=r"Concept: SDXL .* and the base SD15 .* different latent spaces; choose"):
        gcfg(base, tiny.conditioning(1), tiny.conditioning(2), tiny.latent(), tiny.sdxl(1))
    with pytest.raises(ValueError, match="SD3 .*16-channel"):
        apply(base, [Link(model=tiny.sd3(1))])


def test_flow_beside_eps(tiny, base):
    with pytest.raises(ValueError, match=r"SD15 \(flow matching.* and the base SD15 \(eps.* choose two models"):
        apply(base, [Link(model=tiny.sd15(2, prediction="flow"))])


def test_conditioning_of_another_text_encoder(tiny, base):
    with pytest.raises(ValueError, match="2048 wide, but SD15 .* reads 768"):
        apply(base, [Link(conditioning=tiny.conditioning(1, width=2048))])


def test_a_reference_that_does_not_fit(tiny, base):
    with pytest.raises(ValueError, match="Guidance 1, reference"):
        apply(base, [Link(conditioning=tiny.conditioning(1), reference="custom", reference_model=tiny.sdxl(1))])


def test_patched_models(tiny, base, concept):
    patched = apply(base, [Link(model=concept)])
    with pytest.raises(ValueError, match="already carries GCFG guidances; connect the MODEL from before"):
        apply(patched, [Link(model=concept)])
    with pytest.raises(ValueError, match="already carries GCFG guidances; connect the MODEL from before"):
        apply(concept, [Link(model=patched)])


def test_guidance_without_unconditional(tiny, base, concept):
    guider = call(custom.BasicGuider, apply(base, [Link(model=concept)]), tiny.conditioning(1))[0]
    refused = pytest.raises(ValueError, match="Guidance 1 needs the unconditional .* negative input")
    with counted(base) as calls, refused:
        guided(guider, tiny.latent())
    assert not calls


def test_guidance_that_needs_no_unconditional(tiny, base, concept):
    """Measured from the positive prediction, a guidance works with a guider that has no negative."""
    patched = apply(base, [Link(model=concept, conditioning=tiny.conditioning(1), reference="previous guidance")])
    guider = call(custom.BasicGuider, patched, tiny.conditioning(1))[0]
    assert torch.isfinite(guided(guider, tiny.latent())).all()


@pytest.mark.parametrize("broken", ["concept", "base"])
def test_nan_names_its_guidance(tiny, base, concept, broken):
    model = {"concept": concept, "base": base}[broken]
    with torch.no_grad():
        model.model.diffusion_model.out[2].bias.fill_(float("nan"))
    name = {"concept": "'Concept'", "base": "the .* prediction of the base model"}[broken]
    with pytest.raises(RuntimeError, match=f"NaN or infinity at noise level .* from .*{name}"):
        gcfg(base, tiny.conditioning(1), tiny.conditioning(2), tiny.latent(), concept)


def test_node_settings(tiny, base):
    settings = dict(scale=1.0, start_percent=0.0, end_percent=1.0, reference="unconditional")
    with pytest.raises(ValueError, match="set 'reference' to 'custom'"):
        GCFGGuidance.execute(**settings, reference_model=base)
    with pytest.raises(ValueError, match="start_percent 0.5 lies after end_percent 0.2"):
        GCFGGuidance.execute(**settings | {"start_percent": 0.5, "end_percent": 0.2})


def test_a_refused_run_leaves_the_models_usable(tiny, base, concept):
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    before = stock(base, positive, negative, tiny.latent())
    with pytest.raises(ValueError):
        Guider(base, negative, [Link(model=tiny.sdxl(1))])
    assert torch.equal(stock(base, positive, negative, tiny.latent()), before)


def test_a_base_of_other_text_but_equal_latents(tiny, base):
    """SD2 beside SD1.5: the sampler's own conditioning fits one of them only."""
    other = tiny.sd2(1)
    message = r"Concept: its conditioning is 768 wide, but SD20 .* reads 1024.* choose a model of the base's family"
    with counted(base, other) as calls, pytest.raises(ValueError, match=message):
        gcfg(base, tiny.conditioning(1), tiny.conditioning(2), tiny.latent(), other)
    assert not calls
    own = Link(model=other, conditioning=tiny.conditioning(3, width=1024))
    text = [tiny.conditioning(seed) for seed in (1, 2)]
    assert torch.isfinite(stock(apply(base, [own]), *text, tiny.latent())).all()


def test_a_null_text_model_of_other_text(tiny, base):
    """It reads no text: what its base would read does not matter."""
    concept, _ = convert(tiny.sd2(1), tiny.conditioning(3, width=1024), latents=1, size=8)
    assert torch.isfinite(gcfg(base, tiny.conditioning(1), tiny.conditioning(2), tiny.latent(), concept)).all()


def test_models_that_are_only_measured_from(tiny, base):
    """At concept_scale 0 its model was not looked at, though the next guidance was measured from it: a KeyError."""
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    with pytest.raises(ValueError, match="Concept: SDXL .* different latent spaces"):
        gcfg(base, positive, negative, tiny.latent(), tiny.sdxl(1), concept_scale=0.0,
             links=[Link(conditioning=positive, reference="previous guidance")])


def test_empty_conditionings(tiny, base, concept):
    """An empty list switched the guidance off in silence."""
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    with pytest.raises(ValueError, match="Concept needs the unconditional conditioning"):
        gcfg(base, positive, [], tiny.latent(), concept)
    with pytest.raises(ValueError, match="Guidance 1: its conditioning is an empty list"):
        gcfg(base, positive, negative, tiny.latent(), links=[Link(conditioning=[])])


def test_functions_of_a_whole_guidance_on_one_model(tiny, base, concept):
    """They did nothing on a guidance's model, without a word; on both models they act on the sampler's guidance."""
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    for node, does in ((nodes_pag.PerturbedAttentionGuidance, "changes the guidance of a whole sampler"),
                       (nodes_model_advanced.RescaleCFG, "changes the guidance of a whole sampler"),
                       (nodes_differential_diffusion.DifferentialDiffusion, "changes a sampler's mask")):
        sentence = f"its model carries {node.__name__}, which {does}.* connect that node to the sampler's model instead"
        with pytest.raises(ValueError, match=f"Concept: {sentence}"):
            gcfg(base, positive, negative, tiny.latent(), call(node, concept, 0.5)[0])
    rescaled = call(nodes_model_advanced.RescaleCFG, base, 0.5)[0]
    gcfg(rescaled, positive, negative, tiny.latent(), rescaled.clone())


def with_controlnet(conditioning, net):
    hint = draw("hint", (1, 64, 64, 3), 1)
    return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, [], net, hint, 1.0, 0.0, 1.0)[0]


def test_latents_of_another_scale_are_refused(tiny, base, concept):
    sampling = type(base.get_model_object("model_sampling"))(base.model.model_config)
    sampling.sigma_data = 0.5
    concept.add_object_patch("model_sampling", sampling)
    with pytest.raises(ValueError, match=r"differently scaled latents \(sigma_data 0.5 and 1.0\)"):
        apply(base, [Link(model=concept)])


def test_nan_does_not_name_the_sound_guidances(tiny, base, concept, prompts):
    with torch.no_grad():
        concept.model.diffusion_model.out[2].bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="NaN or infinity") as error:
        stock(apply(base, [Link(model=concept, name="Broken"), Link(conditioning=tiny.conditioning(3), name="Sound")]),
              *prompts, tiny.latent())
    assert "'Broken'" in str(error.value) and "Sound" not in str(error.value)


def test_a_controlnet_that_wraps_a_run_is_refused_on_a_guidance_alone(tiny, base, prompts):
    """As Reference of Advanced-ControlNet does; on the sampler's own conditionings it is found."""
    positive, negative = prompts
    wrapping = with_controlnet(positive, tiny.controlnet())

    def around(executor, *args, **kwargs):
        return executor(*args, **kwargs)
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook(transformers_dict={
        "wrappers": {WrappersMP.OUTER_SAMPLE: {"pack": [around]}}}))
    wrapping[0][1]["control"].extra_hooks = group
    behind = with_controlnet(tiny.conditioning(3), tiny.controlnet())
    behind[0][1]["control"].set_previous_controlnet(wrapping[0][1]["control"])
    for conditioning in (wrapping, behind):
        with pytest.raises(ValueError, match="Style: .* ControlNet that takes over a whole sampler"):
            stock(apply(base, [Link(conditioning=conditioning, name="Style")]), positive, negative, tiny.latent())
    style = [[tiny.conditioning(3)[0][0], dict(wrapping[0][1])]]
    stock(apply(base, [Link(conditioning=style, name="Style")]), wrapping, negative, tiny.latent(), steps=1)
