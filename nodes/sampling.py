"""Nodes that run a chain of guidances: two KSamplers, a guider, a model patch."""

import comfy.samplers
from comfy_api.latest import io
from nodes import common_ksampler

from ..gcfg.host.models import is_patched
from ..gcfg.host.recipes.sigmas import paper_sigmas
from ..gcfg.host.sampling.chain import Link
from ..gcfg.host.sampling.guider import Guider
from ..gcfg.host.sampling.patch import apply
from .guidance import GuidanceSocket, PerformanceSocket
from .hosts import aliases

MAX_SEED = 0xFFFFFFFFFFFFFFFF


def concept_chain(concept_model, concept_scale, guidance) -> tuple[Link, ...]:
    """The paper's concept guidance in front of a chain."""
    concept = (Link(model=concept_model, scale=concept_scale, name="Concept"),) if concept_model is not None else ()
    return (*concept, *guidance)


def sample(model, concept_model, positive, negative, latent_image, seed, steps, concept_scale, control_scale,
           sampler_name, scheduler, guidance, performance, **options):
    """Concept-centric sampling (arXiv 2312.08195) through the host's KSampler.

    D = D_0 + concept_scale (D_concept - D_0) + control_scale (D_base(positive) - D_0) with D_0 = D_base(negative),
    and the guidances of the chain.
    """
    model = patched(model, concept_chain(concept_model, concept_scale, guidance), control_scale, performance)
    return common_ksampler(model, seed, steps, control_scale, sampler_name, scheduler, positive, negative,
                           latent_image, **options)[0]


def patched(model, links, control_scale, performance):
    """The model with a chain; itself if that is empty, unless the positive need not be predicted."""
    alone = not links and (control_scale != 0.0 or is_patched(model))
    return model if alone else apply(model, links, performance=performance)


def inputs_before_seed() -> list:
    return [
        io.Model.Input("model", tooltip="The base model: gives text control and the unconditional prediction."),
        io.Model.Input("concept_model", optional=True, tooltip=(
            "The concept model: gives fidelity to its domain. Without it this is a stock KSampler.")),
        io.Conditioning.Input("positive", tooltip="What the base model is guided towards (the control guidance)."),
        io.Conditioning.Input("negative", tooltip=(
            "The unconditional: an empty prompt in the paper. Both guidances are measured from it.")),
        io.Latent.Input("latent_image", tooltip="The latent image to denoise."),
    ]


def inputs_after_seed() -> list:
    return [
        io.Int.Input("steps", default=25, min=1, max=10000, tooltip="The number of denoising steps."),
        io.Float.Input("concept_scale", default=1.5, min=-100.0, max=100.0, step=0.1, round=0.01, tooltip=(
            "Strength of the concept guidance: fidelity to the domain. 1 to 2 are usual, 2.5 in the paper; 0 switches "
            "it off.")),
        io.Float.Input("control_scale", default=2.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=(
            "Strength of the text control, the cfg of a stock KSampler. 0 switches it off.")),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m",
                       tooltip="The sampling algorithm."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="sgm_uniform",
                       tooltip="How the noise level falls over the steps. sgm_uniform is nearest to the paper."),
    ]


def guidance_input():
    return GuidanceSocket.Input("guidance", optional=True,
                                tooltip="Further guidances, added to concept and control guidance.")


def performance_input():
    return PerformanceSocket.Input("performance", optional=True, tooltip="Saves forward passes.")


class GCFGKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGKSampler",
            display_name="KSampler (GCFG)",
            category="GCFG",
            description=("Samples a base model and a concept model together by generalized classifier-free guidance "
                         "(arXiv 2312.08195)."),
            **aliases("cfg", "concept", "personalization", "dreambooth", "style", "lora", "two models",
                      "multi guidance", "classifier-free guidance"),
            inputs=[
                *inputs_before_seed(),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                             tooltip="The random seed used for creating the noise."),
                *inputs_after_seed(),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "The amount of denoising; lower values keep the structure of the latent image.")),
                guidance_input(),
                performance_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, concept_scale, control_scale, sampler_name,
                scheduler, denoise, concept_model=None, guidance=(), performance=None) -> io.NodeOutput:
        return io.NodeOutput(sample(
            model, concept_model, positive, negative, latent_image, seed, steps, concept_scale, control_scale,
            sampler_name, scheduler, guidance, performance, denoise=denoise))


class GCFGKSamplerAdvanced(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGKSamplerAdvanced",
            display_name="KSampler (GCFG, Advanced)",
            category="GCFG",
            description="KSampler (GCFG) over a part of the steps, with the leftover noise kept on request.",
            **aliases("cfg", "concept", "personalization", "dreambooth", "style", "lora", "two models",
                      "multi guidance"),
            inputs=[
                *inputs_before_seed(),
                io.Combo.Input("add_noise", options=["enable", "disable"],
                               tooltip="Whether noise is added to the latent image first."),
                io.Int.Input("noise_seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                             tooltip="The random seed used for creating the noise."),
                *inputs_after_seed(),
                io.Int.Input("start_at_step", default=0, min=0, max=10000, tooltip="The first step to run."),
                io.Int.Input("end_at_step", default=10000, min=0, max=10000, tooltip="The step to stop before."),
                io.Combo.Input("return_with_leftover_noise", options=["disable", "enable"],
                               tooltip="Whether the noise that is left at end_at_step stays in the latent."),
                guidance_input(),
                performance_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, add_noise, noise_seed, steps, concept_scale,
                control_scale, sampler_name, scheduler, start_at_step, end_at_step, return_with_leftover_noise,
                concept_model=None, guidance=(), performance=None) -> io.NodeOutput:
        return io.NodeOutput(sample(
            model, concept_model, positive, negative, latent_image, noise_seed, steps, concept_scale, control_scale,
            sampler_name, scheduler, guidance, performance, disable_noise=add_noise == "disable",
            start_step=start_at_step, last_step=end_at_step,
            force_full_denoise=return_with_leftover_noise == "disable"))


class GCFGGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGGuider",
            display_name="GCFG Guider",
            category="GCFG",
            description="A chain of guidances as a GUIDER for SamplerCustomAdvanced.",
            **aliases("cfg guider", "dual cfg", "multi cfg", "composable", "concept", "lora"),
            inputs=[
                io.Model.Input("model", tooltip="The base model."),
                io.Conditioning.Input("negative", optional=True, tooltip=(
                    "The unconditional conditioning: the baseline. Not connected: no text, for null-text models and "
                    "those that predict without any.")),
                GuidanceSocket.Input("guidance", tooltip="The chain of guidances."),
                io.Model.Input("baseline_model", optional=True, tooltip=(
                    "Predicts the baseline under the negative conditioning in place of the base model.")),
                performance_input(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, guidance, negative=None, baseline_model=None, performance=None) -> io.NodeOutput:
        return io.NodeOutput(Guider(model, negative, guidance, baseline_model, performance))


class GCFGPatchModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGPatchModel",
            display_name="Apply GCFG to Model",
            category="GCFG",
            description=("Adds a chain of guidances to a model, for any sampler node. Its positive, negative and cfg "
                         "stay the first guidance."),
            **aliases("model patch", "add guidance", "cfg", "any sampler", "concept", "lora"),
            inputs=[
                io.Model.Input("model", tooltip="The base model."),
                GuidanceSocket.Input("guidance", tooltip="The chain of guidances to add."),
                performance_input(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the guidances.")],
        )

    @classmethod
    def execute(cls, model, guidance, performance=None) -> io.NodeOutput:
        return io.NodeOutput(apply(model, guidance, performance=performance))


class GCFGPaperSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGPaperSigmas",
            display_name="GCFG Paper Sigmas",
            category="GCFG",
            description="The noise levels of the paper's code: evenly spaced whole training steps.",
            **aliases("scheduler", "noise levels", "linspace", "reproduce", "official"),
            inputs=[
                io.Model.Input("model", tooltip="The base model, whose noise schedule is meant."),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="The number of denoising steps."),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip=(
                    "The part of the schedule to run; lower values keep the structure of the latent image.")),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(paper_sigmas(model, steps, denoise))


NODES = [GCFGKSampler, GCFGKSamplerAdvanced, GCFGGuider, GCFGPatchModel, GCFGPaperSigmas]
