"""The tiny models are genuine, seeded, finite, and listen to their conditioning."""

import comfy.model_sampling
import comfy.sample
import comfy.sd
import pytest
import torch


def sample(model, positive, negative, latent, steps=6, cfg=4.0, sampler="euler", seed=3):
    noise = comfy.sample.prepare_noise(latent["samples"], seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "normal", positive, negative, latent["samples"], disable_pbar=True, seed=seed
    )


CASES = [
    ("sd15", {}, {}, 4),
    ("sd15", {"prediction": "v"}, {}, 4),
    ("sd15", {"prediction": "flow"}, {}, 4),
    ("sdxl", {}, {"width": 2048, "pooled": 1280}, 4),
    ("sd3", {}, {"width": 4096, "pooled": 2048}, 16),
]


@pytest.mark.parametrize(("family", "options", "text", "channels"), CASES)
def test_samples_are_sane_and_follow_seed_and_text(tiny, family, options, text, channels):
    build = getattr(tiny, family)
    latent = tiny.latent(batch=2, channels=channels)
    positive, other, negative = (tiny.conditioning(seed=s, **text) for s in (1, 2, 3))
    first = sample(build(seed=1, **options), positive, negative, latent)
    again = sample(build(seed=1, **options), positive, negative, latent)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    for changed in (
        sample(build(seed=1, **options), other, negative, latent),
        sample(build(seed=2, **options), positive, negative, latent),
    ):
        assert (first - changed).std() > 0.02 * first.std()


def test_prediction_types(tiny):
    sampling = comfy.model_sampling
    kinds = {"eps": sampling.EPS, "v": sampling.V_PREDICTION, "flow": sampling.CONST}
    for prediction, kind in kinds.items():
        assert isinstance(tiny.sd15(prediction=prediction).get_model_object("model_sampling"), kind)
    assert isinstance(tiny.sd3().get_model_object("model_sampling"), sampling.CONST)


def test_lora_and_controlnet_have_an_effect(tiny, base):
    latent, positive, negative = tiny.latent(), tiny.conditioning(1), tiny.conditioning(2)
    plain = sample(base, positive, negative, latent)
    with_lora, _ = comfy.sd.load_lora_for_models(base, None, tiny.lora(base), 1.0, 0.0)
    assert (sample(with_lora, positive, negative, latent) - plain).std() > 0.02 * plain.std()
    hint = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    control = tiny.controlnet().copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
    controlled = [[positive[0][0], {"control": control, "control_apply_to_uncond": True}]]
    result = sample(base, controlled, negative, latent)
    assert torch.isfinite(result).all()
    assert (result - plain).std() > 0.02 * plain.std()
    assert torch.equal(sample(base, positive, negative, latent), plain)
