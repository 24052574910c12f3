"""In every chain of docs/PAPERS.md the base in the place of the subject changes nothing, whosever weights it has."""

import comfy.sd
import nodes
import pytest
import torch

from gcfg_pack.gcfg.host.attention.shared import References, share_attention
from gcfg_pack.gcfg.host.recipes.methods import Sockets, chain_for
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from harness.sampling import gcfg, guided, relative

CONTROL = 2.5


@pytest.fixture
def text(tiny):
    return {"whole": tiny.conditioning(1), "null": tiny.conditioning(2)}


@pytest.fixture(params=["one copy", "two copies"])
def twin(request, tiny, base):
    """A model that is the base: by a LoRA of strength 0, or by weights of its own."""
    if request.param == "two copies":
        return tiny.sd15(1)
    return comfy.sd.load_lora_for_models(base, None, tiny.lora(base, 3), 0.0, 0.0)[0]


def refined(text, model, **options):
    return Link(model=model, conditioning=[[text["whole"][0][0].clone(), {}]], scale=1.5, reference="custom",
                reference_conditioning=text["whole"], **options)


def led(tiny, text, model):
    """Both under the same ControlNet."""
    image = torch.rand((1, 64, 64, 3), generator=torch.manual_seed(1))
    both = nodes.ControlNetApplyAdvanced().apply_controlnet(text["whole"], text["null"], tiny.controlnet(), image, 0.8,
                                                            0.0, 1.0)[0]
    return Link(model=model, conditioning=both, scale=1.5, reference="custom", reference_conditioning=both)


def patched(model):
    clone = model.clone()
    clone.set_model_attn2_patch(lambda n, context, value, options: (n, context, value))
    return clone


CHAINS = {
    "A": lambda tiny, text, twin: [refined(text, twin, mask=torch.eye(64)[None]),
                                   refined(text, twin, mask=1 - torch.eye(64)[None])],
    "B": lambda tiny, text, twin: [Link(model=twin, conditioning=text["null"], scale=1.5)],
    "C": lambda tiny, text, twin: [refined(text, None)],
    "D": lambda tiny, text, twin: [refined(text, twin, start=0.4)],
    "E": lambda tiny, text, twin: [refined(text, patched(twin))],
    "G": lambda tiny, text, twin: [led(tiny, text, twin)],
    "I": lambda tiny, text, twin: [refined(text, share_attention(twin, References(tiny.latent(seed=8)["samples"],
                                                                                 start=1.0)))],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_subject_that_is_the_base_changes_nothing(tiny, base, text, twin, name):
    def sampled(*links):
        return gcfg(base, text["whole"], text["null"], tiny.latent(), control_scale=CONTROL, links=links)
    assert relative(sampled(*CHAINS[name](tiny, text, twin)), sampled()) < 2e-5


@pytest.mark.parametrize("name", CHAINS)
def test_a_picture_is_the_same_in_a_batch(tiny, base, text, name):
    """The first picture of a batch has the noise that it has alone."""
    tuned = comfy.sd.load_lora_for_models(base, None, tiny.lora(base, 3), 1.0, 0.0)[0]
    alone, both = (gcfg(base, text["whole"], text["null"], tiny.latent(batch=count), control_scale=CONTROL,
                        links=CHAINS[name](tiny, text, tuned)) for count in (1, 2))
    assert relative(both[:1], alone) < 2e-5 < 1e-2 < relative(both[:1], both[1:])


def test_personalization_guidance_of_the_base_is_cfg(tiny, base, text, twin):
    """Chain H: whatever the reference between the two is."""
    for weight in (0.0, 0.4):
        links = chain_for("personalization guidance",
                          Sockets(text["whole"], None, base, twin, CONTROL, 0.0, weight))
        found = guided(Guider(base, text["null"], links), tiny.latent())
        assert relative(found, gcfg(base, text["whole"], text["null"], tiny.latent(), control_scale=CONTROL)) < 2e-5
