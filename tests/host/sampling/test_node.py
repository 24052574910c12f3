"""Stock nodes are called alike on a host that has them in V1 form and on one that has them in V3 form."""

import comfy.samplers
import nodes
from comfy_extras import nodes_custom_sampler as custom

from harness.node import call


def test_both_forms(tiny, base):
    (sampler,) = call(custom.KSamplerSelect, "euler")
    (sigmas,) = call(custom.BasicScheduler, base, "karras", 4, 1.0)
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    (guider,) = call(custom.CFGGuider, model=base, positive=positive, negative=negative, cfg=2.0)
    (noise,) = call(custom.RandomNoise, 3)
    output, denoised = call(custom.SamplerCustomAdvanced, noise, guider, sampler, sigmas, tiny.latent())
    assert isinstance(guider, comfy.samplers.CFGGuider)
    assert output["samples"].shape == denoised["samples"].shape == (1, 4, 8, 8)
    (latent,) = call(nodes.EmptyLatentImage, 64, 64, 2)
    assert latent["samples"].shape == (2, 4, 8, 8)
