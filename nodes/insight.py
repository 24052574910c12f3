"""Nodes that show what guidances do, and nodes that save building them by hand."""

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..gcfg.guidance.trace_plot import MissingLibrary, plot
from ..gcfg.host.recipes.methods import METHODS, Sockets, chain_for
from ..gcfg.host.sampling.tracing import trace_of
from .guidance import GuidanceSocket
from .hosts import aliases

CATEGORY = "GCFG/insight"


class GCFGInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGInspector",
            display_name="GCFG Inspect Guidance",
            category=CATEGORY,
            description=("Shows what each guidance did in the last run: its size relative to the unconditional "
                         "prediction, the angle to the others, its scale, and the forward passes and time it took."),
            is_output_node=True,
            **aliases("plot", "debug", "trace", "analyse", "csv", "cfg"),
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
        try:
            image = torch.from_numpy(plot(trace)).float().div(255).unsqueeze(0)
        except MissingLibrary as missing:
            return io.NodeOutput(ExecutionBlocker(str(missing)), trace.csv(), ui=ui.PreviewText(str(missing)))
        return io.NodeOutput(image, trace.csv(), ui=ui.PreviewImage(image, cls=cls))


class GCFGPreset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGPreset",
            display_name="GCFG Guidance Preset",
            category="GCFG",
            description=("A published method as a chain of guidances, for GCFG Guider. The help page says which one "
                         "to use when, and what it needs."),
            **aliases("cfg", "negative", "composable", "AND", "perp neg", "autoguidance", "apg", "pag",
                      "perturbed attention", "instruct pix2pix", "domain guidance", "personalization",
                      "recipe"),
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


NODES = [GCFGInspector, GCFGPreset]
