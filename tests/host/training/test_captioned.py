"""A captioned network in training predicts what the host predicts, on every class; its weights become a stock LoRA."""

import comfy.samplers
import pytest
import torch

from gcfg_pack.gcfg.host.training.models.captioned import Captioned, with_lora
from gcfg_pack.gcfg.host.training.models.network import differentiable
from gcfg_pack.gcfg.training.memory import Plan
from harness.models import families
from harness.models.concepts import same, weights_of

CPU = torch.device("cpu")
FAMILIES = {"sd15": ({}, {"width": 768}, 4), "sdxl": ({}, {"width": 2048, "pooled": 1280}, 4),
            "sd3": ({}, {"width": 4096, "pooled": 2048}, 16)}


def captioned(base, method="LoRA", plan=None):
    with torch.inference_mode(False):
        return Captioned(base, method, 2, 0, plan or Plan(), CPU)


def noisy(tiny, channels, batch=2):
    return tiny.latent(batch, channels, seed=4)["samples"], torch.tensor([0.4, 0.8])[:batch]


def host_prediction(base, text, x, sigma):
    """The denoised prediction of the host's sampler for one conditioning."""
    conds = comfy.samplers.process_conds(base.model, x, {"positive": [text[0][1] | {
        "cross_attn": text[0][0], "uuid": None, "model_conds": {}}]}, CPU)
    base.pre_run()
    return comfy.samplers.calc_cond_batch(base.model, [conds["positive"]], x, sigma, base.model_options)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_network_predicts_what_the_host_predicts(tiny, family):
    options, text, channels = FAMILIES[family]
    base = getattr(tiny, family)(seed=1, **options)
    trainable = captioned(base)
    x, sigma = noisy(tiny, channels)
    texts = [tiny.conditioning(seed, **text) for seed in (1, 2)]
    with torch.no_grad():
        output = trainable.predict(x, sigma, **trainable.conditions(texts, x))
        ours = trainable.sampling.calculate_denoised(sigma, output, x)
    theirs = [host_prediction(base, text, x[k:k + 1], sigma[k:k + 1]) for k, text in enumerate(texts)]
    assert torch.allclose(ours, torch.cat(theirs), atol=1e-5)


@pytest.mark.parametrize("family, method", [("sd15", "K and V"), ("sdxl", "K and V"), ("sd15", "LoRA"),
                                            ("sdxl", "LoRA"), ("sd3", "LoRA")])
def test_gradient_reaches_text_and_the_trained_weights_alone_and_the_lora_is_exact(tiny, family, method):
    options, text, channels = FAMILIES[family]
    base = getattr(tiny, family)(seed=1, **options)
    before = {key: value.clone() for key, value in weights_of(base).items()}
    trainable = captioned(base, method)
    x, sigma = noisy(tiny, channels)
    positive = tiny.conditioning(1, **text)
    positive[0][0].requires_grad_(True)
    loss = trainable.predict(x, sigma, **trainable.conditions([positive, positive], x)).square().mean()
    loss.backward()
    assert float(positive[0][0].grad.abs().max()) > 0.0
    moved = {name for name, p in trainable.network.named_parameters() if p.grad is not None}
    trained = [p for name, p in trainable.parameters.items() if not name.endswith("/down")]  # up is zero at first
    assert moved == (set(trainable.parameters) if method == "K and V" else set())
    assert all(p.grad is not None for p in trained) and any(float(p.grad.abs().max()) > 0.0 for p in trained)
    with torch.no_grad():
        for k, parameter in enumerate(trainable.parameters.values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)), alpha=0.02)
        output = trainable.predict(x, sigma, **trainable.conditions([positive, positive], x))
        ours = trainable.sampling.calculate_denoised(sigma, output, x)
    assert same(weights_of(base), before)
    with torch.inference_mode():
        tuned = with_lora(base, trainable.lora(trainable.parameters))
        plain = host_prediction(base, positive, x, sigma)
        tuned.patch_model()
        theirs = host_prediction(tuned, positive, x, sigma)
        tuned.unpatch_model()
    assert (theirs - plain).abs().max() > 1e-2
    assert (ours - theirs).abs().max() < 1e-4


def test_a_lora_on_a_video_model():
    """Wan's class, one frame a picture: the network predicts what the host predicts, the LoRA is exact in the host."""
    family = families.FAMILIES["Wan 2.1 text to video"]
    base, text = family.model(1), family.conditioning(1)
    trainable = captioned(base)
    x = torch.randn(2, 16, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    sigma = torch.tensor([0.4, 0.8])
    with differentiable():
        trainable.predict(x, sigma, **trainable.conditions([text, text], x)).square().mean().backward()
    ups = [p for name, p in trainable.parameters.items() if name.endswith("/up")]
    assert sum(float(p.grad.abs().max()) > 0.0 for p in ups if p.grad is not None) > 0.8 * len(ups)
    with torch.no_grad():
        for k, parameter in enumerate(trainable.parameters.values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)), alpha=0.02)
        output = trainable.predict(x, sigma, **trainable.conditions([text, text], x))
        ours = trainable.sampling.calculate_denoised(sigma, output, x)
    with torch.inference_mode():
        tuned = with_lora(base, trainable.lora(trainable.parameters))
        plain = host_prediction(base, text, x, sigma)
        tuned.patch_model()
        theirs = host_prediction(tuned, text, x, sigma)
        tuned.unpatch_model()
    assert (theirs - plain).abs().max() > 1e-2 and (ours - theirs).abs().max() < 1e-4


def test_keys_and_values_need_a_cross_attention(tiny):
    with pytest.raises(ValueError, match="no separate cross-attention.*choose the method LoRA"):
        captioned(tiny.sd3(seed=1), "K and V")


def test_lora_of_another_model_is_refused(tiny):
    trainable = captioned(tiny.sdxl(seed=1), "K and V")
    with pytest.raises(ValueError, match="does not belong to SD15"):
        with_lora(tiny.sd15(seed=1), trainable.lora(trainable.parameters))
