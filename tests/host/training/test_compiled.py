"""Compiled blocks compute what they computed, with the same gradients; what cannot be compiled is said."""

import shutil

import pytest
import torch

from gcfg_pack.gcfg.host.concepts import convert
from gcfg_pack.gcfg.host.training.models import blocks, empty_prompt, network, trainable
from gcfg_pack.gcfg.training.memory import Plan
from gcfg_pack.gcfg.training.settings import Settings
from harness.models.families import FAMILIES, available


@pytest.fixture(params=["SD1.5, full", "Z-Image, LoRA"])
def trained(request, tiny, monkeypatch):
    """trained(plan) -> output and gradients of a small network in training, its pairs and steps from fixed seeds."""
    family, method = request.param.split(", ")
    if family != "SD1.5" and family not in available():
        pytest.skip(f"this ComfyUI has no {family}")
    monkeypatch.setattr(empty_prompt, "transformer_blocks", lambda network: network.layers[:1])  # it takes long
    settings, cpu = Settings(method=method, rank=2), torch.device("cpu")
    base = tiny.sd15(1) if family == "SD1.5" else FAMILIES[family].model(1)

    def made(plan):
        if family != "SD1.5":
            return empty_prompt.EmptyPrompt(base, FAMILIES[family].conditioning(0), settings, plan, cpu)
        features, _ = convert.null_text_features(base, tiny.conditioning(3), latents=1, size=8)
        return trainable.Trainable(base, features, tiny.conditioning(3), settings, plan, cpu)

    def computed(plan, sizes=(8,)):
        results = []
        with torch.inference_mode(False), torch.enable_grad(), network.differentiable():
            form = made(plan)
            with torch.no_grad():
                for number, parameter in enumerate(form.parameters.values()):
                    source = torch.Generator().manual_seed(number)
                    parameter += 0.02 * torch.randn(parameter.shape, generator=source)
            for size in sizes:
                x = torch.randn(2, form.latent_format.latent_channels, size, size,
                                generator=torch.Generator().manual_seed(size))
                output = (form.null_text if family == "SD1.5" else form.predicted)(x, torch.tensor([0.3, 0.8]))
                output.square().mean().backward()
                results.append(output.detach())
        return results + [p.grad for p in form.parameters.values() if p.grad is not None]
    return computed


def test_compiled_blocks_compute_the_same(trained, monkeypatch):
    monkeypatch.setattr(blocks, "BACKEND", "aot_eager")
    plain, ours = trained(Plan()), trained(Plan(compiled=True, checkpointing=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert len(plain) == len(ours) > 10
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, ours, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_compiled_by_inductor_at_several_sizes(trained):
    plain, ours = trained(Plan(), (8, 16, 12)), trained(Plan(compiled=True), (8, 16, 12))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(plain, ours, strict=True))


def test_what_cannot_be_compiled_is_said(trained, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no compiler")
    monkeypatch.setattr(blocks, "BACKEND", broken)
    with pytest.raises(ValueError, match="cannot compile this model's blocks here .*no compiler.*switch compile off"):
        trained(Plan(compiled=True))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
