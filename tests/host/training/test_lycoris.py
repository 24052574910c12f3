"""LoHa and LoKr: trained by the host's own adapters, saved as files that stock Load LoRA reads to the same effect."""

import comfy.sd
import comfy.utils
import pytest
import torch

from gcfg_pack.gcfg.host.training import images
from gcfg_pack.gcfg.host.training import train as training
from gcfg_pack.gcfg.host.training.models import empty_prompt, lycoris, network
from gcfg_pack.gcfg.host.training.models.captioned import with_lora
from gcfg_pack.gcfg.training.data import dataset
from gcfg_pack.gcfg.training.memory import Plan
from gcfg_pack.gcfg.training.run.task import Watch
from gcfg_pack.gcfg.training.settings import Settings
from harness.models.families import FAMILIES
from harness.sampling import gcfg
from harness.training import Clip, Vae, draw_pictures

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", lycoris.KINDS)
@pytest.mark.parametrize("family", ["sd15", "Flux.1"])
def test_what_is_trained_is_what_a_file_does(tiny, family, kind):
    base = tiny.sd15(seed=1) if family == "sd15" else FAMILIES[family].model(1)
    empty = tiny.conditioning(1) if family == "sd15" else FAMILIES[family].conditioning(0)
    channels = base.get_model_object("latent_format").latent_channels
    x, sigma = torch.randn((2, channels, 8, 8), generator=torch.Generator().manual_seed(2)), torch.tensor([0.3, 0.8])
    with torch.inference_mode(False), torch.enable_grad(), network.differentiable():
        settings = Settings(method=kind, rank=4)
        form = empty_prompt.EmptyPrompt(base, empty, settings, Plan(checkpointing=True), CPU)
        plain = empty_prompt.EmptyPrompt(base, empty, Settings(method="LoRA", rank=1), Plan(), CPU)
        again = empty_prompt.EmptyPrompt(base, empty, settings, Plan(), CPU)
        assert all(torch.equal(p, again.parameters[name]) for name, p in form.parameters.items())
        assert torch.allclose(form.predicted(x, sigma), plain.predicted(x, sigma), atol=1e-6)
        for k, parameter in enumerate(form.parameters.values()):
            generator = torch.Generator().manual_seed(k)
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        output = form.predicted(x, sigma)
        output.square().mean().backward()
        grads = [p.grad for p in form.parameters.values() if p.grad is not None]
        assert len(grads) > 0.8 * len(form.parameters) and all(torch.isfinite(grad).all() for grad in grads)
        tuned = with_lora(base, form.lora(form.parameters))
        merged = empty_prompt.EmptyPrompt(tuned, empty, Settings(method="LoRA", rank=1), Plan(), CPU)
        expected = merged.predicted(x, sigma)
    assert (output - expected).norm() < 1e-4 * expected.norm()
    assert (output - plain.predicted(x, sigma)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", lycoris.KINDS)
def test_a_run(tiny, tmp_path, kind):
    base = tiny.sd15(seed=1)
    folder = draw_pictures(tmp_path / "pictures", 12)
    pictures = images.prepare(dataset.Source(str(folder), 64), Vae(), tmp_path / "latents")

    def run(steps, output):
        settings = Settings(run_name="discs", method=kind, rank=4, batch=4, learning_rate=1e-2, preview_every=steps,
                            preview_steps=1, preview_count=1, held_out_every=0, target_steps=steps, ema=False,
                            output=str(tmp_path / output))
        with torch.inference_mode():
            return training.train(base, Clip(), pictures, settings, Watch())
    whole = run(4, "whole")
    run(2, "parts")
    made = run(4, "parts")
    assert torch.equal(made.history.nan_to_num(), whole.history.nan_to_num())
    assert "Load LoRA with `discs.safetensors`" in (made.folder.path / "README.md").read_text()
    text, empty = tiny.conditioning(1), tiny.conditioning(2)
    ours = gcfg(base, text, empty, tiny.latent(), concept=made.model, concept_scale=1.0)
    file = comfy.utils.load_torch_file(str(made.folder.path / "discs.safetensors"), safe_load=True)
    stock = comfy.sd.load_lora_for_models(base, None, file, 1.0, 0.0)[0]
    theirs = gcfg(base, text, empty, tiny.latent(), concept=stock, concept_scale=1.0)
    plain = gcfg(base, text, empty, tiny.latent(), concept=base, concept_scale=1.0)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, plain, atol=1e-3)
    finished = run(4, "parts")
    assert torch.allclose(gcfg(base, text, empty, tiny.latent(), concept=finished.model, concept_scale=1.0), ours,
                          atol=1e-4)
