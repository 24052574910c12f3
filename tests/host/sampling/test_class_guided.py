"""A subject, its base and a concept in one batch over one copy of the weights: class-guided with a concept model."""

import torch

from gcfg_pack.gcfg.host.recipes.methods import Sockets, chain_for
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.training.models.captioned import with_lora
from harness.sampling import STEPS, counted, gcfg, relative

from .test_one_copy import with_adapter


def subject(base, seed=5):
    """Keys and values of every cross-attention changed densely, as Train Subject's LoRA file does it."""
    source, tensors = torch.Generator().manual_seed(seed), {}
    for name, weight in base.model.diffusion_model.state_dict().items():
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
            change = 0.2 * weight.std() * torch.randn(weight.shape, generator=source)
            tensors[f"diffusion_model.{name.removesuffix('.weight')}.diff"] = change
    return with_lora(base, tensors)


def chain(base, named, plain):
    return (*chain_for("class-guided", Sockets(named, plain, model_2=subject(base), scale=6.0, scale_2=4.0)),
            Link(model=with_adapter(None, base), scale=1.5, name="concept"))


def test_subject_base_and_concept_run_in_one_batch(tiny, base):
    named, plain, negative = (tiny.conditioning(seed) for seed in (1, 2, 3))
    with counted(base) as calls:
        result = gcfg(base, plain, negative, tiny.latent(), control_scale=0.0, links=chain(base, named, plain))
    assert calls == [(0, 4)] * STEPS  # null, class, subject, concept
    other = tiny.sd15(1)
    apart = gcfg(base, plain, negative, tiny.latent(), control_scale=0.0, links=chain(other, named, plain))
    assert relative(result, apart) < 1e-4
    without = gcfg(base, plain, negative, tiny.latent(), control_scale=0.0,
                   links=chain_for("class-guided", Sockets(named, plain, model_2=base, scale=6.0, scale_2=0.0)))
    assert relative(result, without) > 0.1
