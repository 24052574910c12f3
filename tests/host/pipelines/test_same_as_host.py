"""The same recipe on the same files: a diffusers pipeline and the host give the same latent and the same picture."""

import comfy.sample
import comfy.sd
import nodes
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom

from harness import sampling
from harness.models import files
from harness.models.concepts import written
from harness.node import call

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install '.[diffusers]')")

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from gcfg_pack.gcfg.guidance import BASE, Guidance, Prediction, Recipe, Schedule, Shaping, presets
from gcfg_pack.gcfg.host.concepts import convert
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.guider import Guider
from gcfg_pack.gcfg.host.sampling.patch import apply
from gcfg_pack.gcfg.pipelines import concept_unet, guided, load, text
from gcfg_pack.nodes.sampling import GCFGPaperSigmas

PROMPT, STEPS, SEED = "a red cat, wearing glasses!", 5, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    files.write_models(folder)
    return folder


@pytest.fixture(scope="module")
def hosted(folder):
    """MODEL, CLIP and VAE of the checkpoint, and its concept model, as the stock loaders give them."""
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(folder / "checkpoints" / "tiny_sd15.ckpt"))[:3]
    return model, clip, vae, comfy.sd.load_diffusion_model(str(folder / "diffusion_models" / "tiny_concept.ckpt"))


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = load(folder / "checkpoints" / "tiny_sd15.ckpt")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def concept(folder, pipeline):
    return concept_unet(folder / "diffusion_models" / "tiny_concept.ckpt", pipeline.unet)


@pytest.fixture
def conds(hosted):
    return tuple(nodes.CLIPTextEncode().encode(hosted[1], prompt)[0] for prompt in (PROMPT, ""))


def sampled(pipeline, recipe, concept, scheduler, output="latent"):
    """What the pipeline makes of the host's noise: unit variance, below the highest level sigma times the noise."""
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), SEED)
    before, pipeline.scheduler = pipeline.scheduler, scheduler  # others are made from its configuration
    scheduler.set_timesteps(STEPS)
    first = int(scheduler.timesteps[0])
    if first < 999:
        noise = noise * (1.0 - scheduler.alphas_cumprod[first]).sqrt()
    try:
        with guided(pipeline, recipe, {"concept": concept}, {"unconditional": text(pipeline, "")}):
            return pipeline(PROMPT, guidance_scale=1.0, latents=noise, num_inference_steps=STEPS, height=64, width=64,
                            output_type=output).images
    finally:
        pipeline.scheduler = before


def dpm(pipeline):
    scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    scheduler.set_timesteps(STEPS)
    return scheduler


def ddim(pipeline):
    return DDIMScheduler.from_config(pipeline.scheduler.config)


def test_texts_are_the_same(hosted, pipeline):
    for prompt in (PROMPT, "", "smiling face with heart-eyes 😍 100 naïve"):
        own = nodes.CLIPTextEncode().encode(hosted[1], prompt)[0][0][0]
        assert sampling.relative(text(pipeline, prompt)["encoder_hidden_states"], own.float()) < 1e-5


def test_ksampler_with_ddim(hosted, pipeline, concept, conds, tiny):
    model, _, vae, other = hosted
    ours = sampling.gcfg(model, *conds, tiny.latent(), concept=other, sampler="ddim", scheduler="ddim_uniform",
                         steps=STEPS, seed=SEED)
    recipe = presets.concept_centric(2.5, 2.5)
    theirs = sampled(pipeline, recipe, concept, ddim(pipeline)) / 0.18215
    assert sampling.relative(theirs, ours) < 1e-4
    picture = torch.as_tensor(sampled(pipeline, recipe, concept, ddim(pipeline), "np"))
    assert (picture - vae.decode(ours).cpu()).abs().max() < 1e-3


def test_guider_on_the_papers_noise_levels(hosted, pipeline, concept, conds, tiny):
    model, _, _, other = hosted
    scheduler = dpm(pipeline)
    (sigmas,) = call(GCFGPaperSigmas, model, STEPS, 1.0)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-5, atol=0.0)
    chain = (Link(conditioning=conds[0], scale=2.5), Link(model=other, scale=2.5))
    ours = sampling.sampled(Guider(model, conds[1], chain), tiny.latent(), sigmas, "dpmpp_2m", SEED)
    theirs = sampled(pipeline, presets.concept_centric(2.5, 2.5), concept, scheduler) / 0.18215
    assert sampling.relative(theirs, ours) < 2e-5
    patched = apply(model, chain[1:])  # as in the template The Paper's Settings, Exactly
    (method,) = call(custom.KSamplerSelect, "dpmpp_2m")
    template = call(custom.SamplerCustom, patched, True, SEED, 2.5, *conds, method, sigmas, tiny.latent())[0]["samples"]
    assert sampling.relative(template, ours) < 1e-6


def test_paper_sigmas_of_a_part_and_of_flow_models(tiny, base):
    whole, half = (call(GCFGPaperSigmas, base, steps, denoise)[0] for steps, denoise in ((10, 1.0), (5, 0.5)))
    assert torch.equal(half, whole[-6:])
    assert whole[0] == base.get_model_object("model_sampling").sigma_max and whole[-1] == 0.0
    for other in (tiny.sd15(prediction="flow"), tiny.sd3()):
        with pytest.raises(ValueError, match="no training steps with noise levels"):
            call(GCFGPaperSigmas, other, 10, 1.0)


def test_windows_schedules_and_shaping(hosted, pipeline, concept, conds, tiny):
    model, _, _, other = hosted
    scheduler = dpm(pipeline)
    shaping = Shaping(parallel=0.3, momentum=-0.4, norm_limit=0.8)
    options = {"schedule": Schedule("cosine", 1.0, 0.2), "shaping": shaping}
    chain = (Link(conditioning=conds[0], scale=3.0), Link(model=other, scale=1.5, start=0.2, end=0.8, **options))
    ours = sampling.sampled(Guider(model, conds[1], chain), tiny.latent(), scheduler.sigmas, "dpmpp_2m", SEED)
    recipe = Recipe((Guidance(Prediction(BASE, "positive"), scale=3.0),
                     Guidance(Prediction("concept"), scale=1.5, start=0.2, end=0.8, **options)))
    theirs = sampled(pipeline, recipe, concept, scheduler) / 0.18215
    assert sampling.relative(theirs, ours) < 1e-4
    assert sampling.relative(sampled(pipeline, recipe, concept, scheduler) / 0.18215, theirs) == 0.0


@pytest.mark.parametrize("form", ["concept", "stock UNet"])
def test_null_text_models(hosted, pipeline, conds, tiny, tmp_path, form):
    null_text = convert.convert(hosted[3], conds[1], latents=2, size=8)[0]
    file = concept_unet(written(tmp_path / "c.safetensors", null_text, form=form), pipeline.unet)
    ours = sampling.gcfg(hosted[0], *conds, tiny.latent(), concept=null_text, sampler="ddim", scheduler="ddim_uniform",
                         steps=STEPS, seed=SEED)
    theirs = sampled(pipeline, presets.concept_centric(2.5, 2.5), file, ddim(pipeline)) / 0.18215
    assert sampling.relative(theirs, ours) < 1e-4
