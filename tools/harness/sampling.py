"""Shorthand of the sampling tests: stock nodes and the pack's nodes on tiny models, and a count of forward passes."""

from contextlib import contextmanager

import comfy.samplers
import nodes
import torch
from comfy_extras import nodes_custom_sampler as custom

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.nodes.sampling import GCFGKSampler

from .node import call

STEPS = 4


def stock(model, positive, negative, latent, cfg=2.5, sampler="euler", scheduler="karras", steps=STEPS, seed=5,
          denoise=1.0):
    """The stock KSampler node's latent (B, C, H, W)."""
    return nodes.KSampler().sample(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent,
                                   denoise)[0]["samples"]


def gcfg(model, positive, negative, latent, concept=None, concept_scale=2.5, control_scale=2.5, sampler="euler",
         scheduler="karras", steps=STEPS, seed=5, denoise=1.0, links=()):
    """The latent of KSampler (GCFG)."""
    return GCFGKSampler.execute(model, positive, negative, latent, seed, steps, concept_scale, control_scale, sampler,
                                scheduler, denoise, concept_model=concept, guidance=tuple(links)).args[0]["samples"]


def guided(guider, latent, sampler="euler", scheduler="karras", steps=STEPS, seed=5, denoise=1.0):
    """The latent of SamplerCustomAdvanced with a guider, over the noise levels that the stock KSampler would use."""
    sigmas = comfy.samplers.KSampler(guider.model_patcher, steps, "cpu", sampler, scheduler, denoise).sigmas
    return sampled(guider, latent, sigmas, sampler, seed)


def sampled(guider, latent, sigmas, sampler="euler", seed=5):
    """The latent of SamplerCustomAdvanced over given noise levels."""
    chosen = comfy.samplers.sampler_object(sampler)
    return call(custom.SamplerCustomAdvanced, custom.Noise_RandomNoise(seed), guider, chosen, sigmas,
                latent)[0]["samples"]


def without_free_memory(monkeypatch, patcher):
    """Let the host believe that no memory is left for a second conditioning in a batch."""
    if hasattr(patcher, "get_free_memory"):
        monkeypatch.setattr(type(patcher), "get_free_memory", lambda self, device: 0)
        return
    management = comfy.samplers.model_management  # the older host asks the module, as its attention does

    class Full:
        def __getattr__(self, name):
            return getattr(management, name)

        def get_free_memory(self, device):
            return 0
    monkeypatch.setattr(comfy.samplers, "model_management", Full())


def through_guider(model, positive, negative, latent, links=(), scale=2.5, baseline_model=None, **options):
    """A positive guidance and a chain through GCFG Guider."""
    first = Link(conditioning=positive, scale=scale)
    return guided(Guider(model, negative, (first, *links), baseline_model), latent, **options)


@contextmanager
def counted(*patchers):
    """Counts the forward passes of models: yields a list of (which model, rows of the batch)."""
    calls, handles = [], []
    for index, patcher in enumerate(patchers):
        def note(module, args, output, index=index):
            calls.append((index, args[0].shape[0]))
        handles.append(patcher.model.diffusion_model.register_forward_hook(note))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference in units of b's standard deviation."""
    return float((a - b).abs().max() / b.std())
