"""A recipe in diffusers pipelines, against what the pipelines do by themselves; tiny random networks, no host."""

from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install '.[diffusers]')")
pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[diffusers]')")

from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from gcfg.guidance import BASE, Guidance, Prediction, Recipe, presets
from gcfg.pipelines import guided

POSITIVE = Prediction(BASE, "positive")
SMALL = {"block_out_channels": [32], "layers_per_block": 1, "down_block_types": ["CrossAttnDownBlock2D"],
         "up_block_types": ["CrossAttnUpBlock2D"], "cross_attention_dim": 16, "attention_head_dim": 4, "sample_size": 8}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 60}


def network(seed, **options):
    torch.manual_seed(seed)
    return UNet2DConditionModel(**SMALL, **options).train(False).requires_grad_(False)


def texts(seed, batch=1, length=7, width=16):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def noise(batch=1):
    return texts(99, batch, 4, 64).reshape(batch, 4, 8, 8)


@pytest.fixture
def pipeline():
    made = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=network(1),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def run(pipeline, scale=1.0, batch=1, **options):
    options = {"prompt_embeds": texts(2, batch), "num_inference_steps": 4, "output_type": "latent", "height": 64,
               "width": 64} | options
    return pipeline(guidance_scale=scale, latents=noise(batch), **options).images


def null(length=7):
    return {"unconditional": {"encoder_hidden_states": texts(3, length=length)}}


@contextmanager
def counted(unet):
    """The batch sizes of a network's passes; for what hooks and other callers run alike."""
    sizes, handle = [], unet.conv_in.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def close(a, b):
    return float((a - b).abs().max() / b.std()) < 2e-5


@pytest.mark.parametrize("scheduler", [
    *(DDIMScheduler(clip_sample=False, prediction_type=kind) for kind in ("epsilon", "v_prediction", "sample")),
    EulerDiscreteScheduler(timestep_spacing="linspace"), EulerDiscreteScheduler(use_karras_sigmas=True)])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_guidance_is_the_pipelines_own(pipeline, scheduler, batch):
    pipeline.scheduler = scheduler
    own = run(pipeline, 2.5, batch, negative_prompt_embeds=texts(3).repeat(batch, 1, 1))
    with counted(pipeline.unet) as sizes, guided(pipeline, presets.classifier_free(2.5), conditionings=null()):
        assert close(run(pipeline, batch=batch), own)
    assert sizes == [2 * batch] * 4


def test_nothing_stays_behind(pipeline):
    before = run(pipeline)
    with guided(pipeline, presets.classifier_free(4.0), conditionings=null()):
        assert not close(run(pipeline), before)
    assert torch.equal(run(pipeline), before)


def test_a_concept_model_of_the_bases_weights_changes_nothing(pipeline):
    with guided(pipeline, presets.classifier_free(2.5), conditionings=null()):
        plain = run(pipeline)
    twin = Recipe((Guidance(POSITIVE, scale=2.5), Guidance(Prediction("concept", "positive"), POSITIVE, scale=7.0)))
    for seed, same in ((1, True), (2, False)):
        with guided(pipeline, twin, {"concept": network(seed)}, null()):
            assert close(run(pipeline), plain) is same


def test_what_does_not_count_is_not_evaluated(pipeline):
    concept = network(2)
    recipe = Recipe((Guidance(POSITIVE, scale=1.0), Guidance(Prediction("concept"), scale=0.0)))
    with counted(pipeline.unet) as sizes, counted(concept) as others:
        with guided(pipeline, recipe, {"concept": concept}, null()):
            run(pipeline)
    assert (sizes, others) == ([1] * 4, [])


def test_texts_of_other_lengths_get_their_own_pass(pipeline):
    with counted(pipeline.unet) as sizes, guided(pipeline, presets.classifier_free(2.5), conditionings=null(length=5)):
        run(pipeline)
    assert sizes == [1] * 8


def test_a_mask(pipeline):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1.0
    left = Recipe((Guidance(POSITIVE, scale=3.0, mask="left"),))
    everywhere = presets.classifier_free(3.0)
    with guided(pipeline, left, conditionings=null(), masks={"left": mask}):
        half = pipeline.unet(noise(), 500, texts(2)).sample
    with guided(pipeline, everywhere, conditionings=null()):
        full = pipeline.unet(noise(), 500, texts(2)).sample
    baseline = pipeline.unet(noise(), 500, texts(3)).sample
    assert close(half[..., :4], full[..., :4]) and close(half[..., 4:], baseline[..., 4:])


def test_what_a_controlnet_adds_stays_with_the_prompt(pipeline):
    unet, extra = pipeline.unet, {"mid_block_additional_residual": torch.ones(1, 32, 8, 8),
                                  "down_block_additional_residuals": [torch.ones(1, 32, 8, 8)] * 2}
    with torch.no_grad():
        controlled, plain = unet(noise(), 500, texts(2), **extra).sample, unet(noise(), 500, texts(3)).sample
    with guided(pipeline, presets.classifier_free(3.0), conditionings=null()):
        assert close(unet(noise(), 500, texts(2), **extra).sample, plain + 3.0 * (controlled - plain))


def test_stable_diffusion_xl():
    xl = StableDiffusionXLPipeline(vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
                                   unet=network(1, **XL), scheduler=EulerDiscreteScheduler())
    xl.set_progress_bar_config(disable=True)
    pooled = [texts(seed, 1, 1, 12)[0] for seed in (4, 5)]
    shared = {"pooled_prompt_embeds": pooled[0]}
    own = run(xl, 2.5, negative_prompt_embeds=texts(3), negative_pooled_prompt_embeds=pooled[1], **shared)
    conditionings = {"unconditional": null()["unconditional"] | {"added_cond_kwargs": {"text_embeds": pooled[1]}}}
    with guided(xl, presets.classifier_free(2.5), conditionings=conditionings):
        assert close(run(xl, **shared), own)


@pytest.mark.parametrize("given, says", [
    ({}, "names the model 'concept', which is not given"),
    ({"models": {"concept": network(2)}}, "names the conditioning 'unconditional', which is not given"),
    ({"models": {"concept": network(2, in_channels=16, out_channels=16)}, "conditionings": null()},
     "different latent spaces"),
])
def test_what_is_missing_or_does_not_fit_is_refused_before_sampling(pipeline, given, says):
    with pytest.raises(ValueError, match=says), guided(pipeline, presets.concept_centric(2.0, 1.0), **given):
        pytest.fail("entered")


def test_guidance_on_guidance_is_refused(pipeline):
    with guided(pipeline, presets.classifier_free(2.0), conditionings=null()):
        with pytest.raises(ValueError, match="guidance_scale=1.0"):
            run(pipeline, 7.5, negative_prompt_embeds=texts(3))
        with pytest.raises(ValueError, match="guided already"), guided(pipeline, presets.classifier_free(2.0),
                                                                        conditionings=null()):
            pytest.fail("entered")


def test_schedulers_without_noise_levels_are_refused(pipeline):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with guided(pipeline, presets.classifier_free(2.0), conditionings=null()):
        with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no noise levels"):
            pipeline.unet(noise(), 500, texts(2))
