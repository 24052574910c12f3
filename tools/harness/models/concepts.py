"""What tests of concept models share: a short run of the host's sampler, comparisons, files."""

import comfy.sample
import torch

from gcfg_pack.gcfg.host.concepts import files as concept_files
from gcfg_pack.gcfg.nulltext.formats import checkpoint


def sample(model, positive, negative=None, steps=3, seed=3):
    """A latent of the host's Euler sampler at CFG 2, the negative equal to the positive unless given."""
    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, steps, 2.0, "euler", "normal", positive, negative or positive, latent,
                               disable_pbar=True, seed=seed)


def weights_of(model):
    """The weights in the MODEL's UNet, live."""
    return model.model.diffusion_model.state_dict()


def same(a, b):
    """True for dictionaries of tensors that are equal to the bit, types included."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def written(path, model, dtype="fp32", form="concept", base=None):
    """Write a concept file; its path as text."""
    checkpoint.write(path, *concept_files.content(model, dtype, form, base))
    return str(path)
