"""Nodes that show what guidances do, and nodes that save building them by hand."""

import comfy.samplers
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from nodes import common_ksampler

from ..gcfg.guidance.trace_plot import plot
from ..gcfg.host.sampling import grid
from ..gcfg.host.sampling.methods import METHODS, Sockets, chain_for
from ..gcfg.host.sampling.tracing import trace_of
from .guidance import GuidanceSocket
from .sampling import MAX_SEED, guidance_input, inputs_before_seed, performance_input, with_guidances

CATEGORY = "GCFG/insight"


class GCFGInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGInspector",
            display_name="Inspect Guidance",
            category=CATEGORY,
            description=("Shows what each guidance did in the last run: its size relative to the unconditional "
                         "prediction, the angle to the others, its scale, and the forward passes and time it took."),
            is_output_node=True,
            inputs=[
                io.Guider.Input("guider", optional=True, tooltip=(
                    "The output of GCFG Guider, the same that goes into SamplerCustomAdvanced.")),
                io.Model.Input("model", optional=True, tooltip=(
                    "Instead of a guider: the output of Apply GCFG to Model, the same that goes into the sampler.")),
                io.Latent.Input("latent", tooltip=(
                    "The latent that the sampler gives, so that this node runs after it. It is not looked at.")),
            ],
            outputs=[
                io.Image.Output("plot", display_name="plot", tooltip="The plot that the node shows."),
                io.String.Output("csv", display_name="csv", tooltip=(
                    "The numbers: a line for each call of the model and each guidance.")),
            ],
        )

    @classmethod
    def execute(cls, latent, guider=None, model=None) -> io.NodeOutput:
        if (guider is None) == (model is None):
            raise ValueError("Connect either a guider or a model: the one that the sampler uses.")
        trace = trace_of(model if guider is None else guider)
        image = torch.from_numpy(plot(trace)).float().div(255).unsqueeze(0)
        return io.NodeOutput(image, trace.csv(), ui=ui.PreviewImage(image, cls=cls))


class GCFGScaleGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGScaleGrid",
            display_name="Scale Grid",
            category=CATEGORY,
            description=("Samples with every pair of a concept scale and a control scale, from the same noise: a row "
                         "for each concept scale, a column for each control scale."),
            is_output_node=True,
            inputs=[
                *inputs_before_seed(),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                             tooltip="The random seed of the noise, the same in every cell."),
                io.Int.Input("steps", default=25, min=1, max=10000, tooltip="The number of denoising steps."),
                io.String.Input("concept_scales", default="0, 1, 1.5, 2.5", tooltip=(
                    "Strengths of the concept guidance, separated by commas: one row each.")),
                io.String.Input("control_scales", default="1, 2.5, 5", tooltip=(
                    "Strengths of the text control, separated by commas: one column each.")),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m",
                               tooltip="The sampling algorithm."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="sgm_uniform",
                               tooltip="How the noise level falls over the steps."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "The amount of denoising; lower values keep the structure of the latent image.")),
                guidance_input(),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the cells for the labelled grid."),
                performance_input(),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="All cells as one batch, row by row."),
                io.Image.Output("grid", display_name="grid", tooltip=(
                    "The labelled grid, one for each latent image. Needs the vae.")),
            ],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, concept_scales, control_scales,
                sampler_name, scheduler, denoise, concept_model=None, guidance=(), vae=None,
                performance=None) -> io.NodeOutput:
        rows = grid.parse_scales(concept_scales, "concept_scales")
        columns = grid.parse_scales(control_scales, "control_scales")
        if concept_model is None and len(rows) > 1:
            raise ValueError("Without a concept_model there is nothing for concept_scales to scale; connect one, or "
                             "give a single number.")
        progress, cells = grid.GridProgress(model, len(rows) * len(columns)), []
        for concept_scale in rows:
            guided = with_guidances(model, concept_model, concept_scale, guidance, performance)
            for control_scale in columns:
                cells.append(common_ksampler(
                    progress.watched(guided, len(cells)), seed, steps, control_scale, sampler_name, scheduler, positive,
                    negative, latent_image, denoise=denoise)[0])
        latent = grid.joined(cells)
        if vae is None:
            return io.NodeOutput(latent, ExecutionBlocker("Connect a vae to Scale Grid for its grid output."))
        image = grid.decoded(vae, latent, [f"concept {s:g}" for s in rows], [f"control {s:g}" for s in columns])
        return io.NodeOutput(latent, image, ui=ui.PreviewImage(image, cls=cls))


class GCFGPreset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGPreset",
            display_name="Guidance Preset",
            category=CATEGORY,
            description=("A published method as a chain of guidances, for GCFG Guider. The help page says which one "
                         "to use when, and what it needs."),
            inputs=[
                GuidanceSocket.Input("guidance", optional=True, tooltip="A chain to append to."),
                io.Combo.Input("preset", options=list(METHODS), default="CFG", tooltip="The method."),
                io.Conditioning.Input("positive", optional=True, tooltip=(
                    "The prompt. For InstructPix2Pix: image and instruction.")),
                io.Conditioning.Input("conditioning_2", optional=True, tooltip=(
                    "Composable diffusion: the second prompt. Perp-Neg: the prompt to avoid. InstructPix2Pix: the "
                    "image without an instruction. Concept across control: the concept's class, or nothing. "
                    "Class-guided: the prompt with the class in the subject's place.")),
                io.Model.Input("model", optional=True, tooltip=(
                    "Perturbed-attention and personalization guidance: the sampler's model.")),
                io.Model.Input("model_2", optional=True, tooltip=(
                    "AutoGuidance: the weaker model. Domain and personalization guidance: the fine-tuned model. "
                    "Concept-centric, concept across control: the concept model. Class-guided: the subject's.")),
                io.Float.Input("scale", default=7.5, min=-100.0, max=100.0, step=0.1, round=0.001, tooltip=(
                    "Strength of the prompt. AutoGuidance: usually 2; domain guidance: 1.5; concept-centric: 2.5.")),
                io.Float.Input("scale_2", default=1.5, min=-100.0, max=100.0, step=0.1, round=0.001, tooltip=(
                    "Composable diffusion: strength of the second prompt, negative to avoid it. Perp-Neg: of the "
                    "prompt to avoid, positive. InstructPix2Pix: of the image. Perturbed attention: of that guidance, "
                    "usually 3. Concept-centric, concept across control: of the concept. Class-guided: of the "
                    "subject.")),
                io.Float.Input("weight", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Personalization guidance: the reference's weights between the base (0) and the fine-tuned model "
                    "(1).")),
            ],
            outputs=[GuidanceSocket.Output("chain", display_name="chain",
                                           tooltip="The chain with the method's guidances at its end.")],
        )

    @classmethod
    def execute(cls, preset, scale, scale_2, weight, guidance=(), positive=None, conditioning_2=None, model=None,
                model_2=None) -> io.NodeOutput:
        sockets = Sockets(positive, conditioning_2, model, model_2, scale, scale_2, weight)
        return io.NodeOutput((*guidance, *chain_for(preset, sockets)))


NODES = [GCFGInspector, GCFGScaleGrid, GCFGPreset]
