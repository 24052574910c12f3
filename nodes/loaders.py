"""Nodes that load, convert, extract and save concept models."""

from comfy_api.latest import io, ui

from ..gcfg.host.concepts import concept, convert
from ..gcfg.host.concepts import files as concept_files
from .hosts import aliases, plain_errors

concept_files.register_folder()

CATEGORY = "GCFG/loaders"


class GCFGLoadConceptModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGLoadConceptModel",
            display_name="Load Concept Model",
            category=CATEGORY,
            description=("Loads a concept model: the paper's null-text format, a fine-tuned UNet, a concept adapter, "
                         "or a concept saved as a stock UNet or LoRA."),
            **aliases("lora", "unet", "concept", "null text", "dreambooth", "fine-tune", "personalization",
                      "style"),
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The base model that the concept was made from. It gives the architecture; adapters are applied to "
                    "it. It is not changed.")),
                io.Combo.Input("concept_name", options=concept_files.names(), tooltip=(
                    "A file in models/concept_models or models/diffusion_models.")),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=(
                    "How strongly an adapter changes the weights. Full models ignore it.")),
            ],
            outputs=[
                io.Model.Output("concept_model", display_name="concept_model", tooltip=(
                    "The concept model, for the GCFG samplers and guidances or any node that takes a MODEL.")),
                io.String.Output("description", display_name="description", tooltip=(
                    "What was loaded: kind, base, number of weights, calibration residual, training notes.")),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, concept_name, **others):
        return concept_files.fingerprint(concept_name)

    @classmethod
    @plain_errors
    def execute(cls, model, concept_name, strength) -> io.NodeOutput:
        path = concept_files.find(concept_name)
        return io.NodeOutput(*concept.load(model, path, concept_files.roots(), strength))


class GCFGConvertToNullText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGConvertToNullText",
            display_name="Convert to Null-Text Model",
            category=CATEGORY,
            description=("Replaces the cross-attention of a model by constants, measured on the empty prompt. The "
                         "result ignores all text and needs less memory; train it, or use it as a concept model. Of "
                         "transformers that read text in a cross-attention, keys and values become constants."),
            **aliases("concept", "null text", "unconditional", "fine-tune", "dreambooth"),
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The model to convert: a base to train from, or a fine-tuned model. It is not changed.")),
                io.Conditioning.Input("conditioning", optional=True, tooltip=(
                    "The empty prompt from CLIP Text Encode, as in the paper. Without it all-zero text is used, which "
                    "suits SDXL; transformers need it.")),
                io.Int.Input("samples", default=8, min=1, max=256, tooltip=(
                    "How many random latents to measure on, at four noise levels each.")),
                # False, not None: the frontend gives every INT called seed a "randomize" of its own.
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, tooltip=(
                    "Seed of the latents. The same seed gives the same model.")),
            ],
            outputs=[
                io.Model.Output("concept_model", display_name="concept_model",
                                tooltip="The null-text model, with weights of its own."),
                io.String.Output("residual", display_name="residual", tooltip=(
                    "For each block how far its cross-attention was from a constant: 0 is exact.")),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, model, samples, seed, conditioning=None) -> io.NodeOutput:
        return io.NodeOutput(*convert.convert(model, conditioning, samples, seed))


class GCFGExtractConceptAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGExtractConceptAdapter",
            display_name="Extract Concept Adapter",
            category=CATEGORY,
            description=("Approximates a concept model by low-rank weights on its base: tens of megabytes, and "
                         "sampling from one copy of the weights. Lossy; adapters that are trained directly are "
                         "better."),
            **aliases("lora", "extract lora", "low rank", "concept", "fine-tune", "dreambooth"),
            inputs=[
                io.Model.Input("base_model", tooltip="The model that the concept was made from. It is not changed."),
                io.Model.Input("concept_model", tooltip="The concept model, null-text or fully fine-tuned."),
                io.Int.Input("rank", default=64, min=1, max=1280, tooltip=(
                    "Rank of every layer: larger is closer to the concept model and a larger file.")),
                io.Float.Input("target_error", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Above 0: choose for each layer the smallest rank whose relative error is at most this, and ignore "
                    "'rank'.")),
            ],
            outputs=[
                # Older hosts refuse an output with the id of an input.
                io.Model.Output("adapted_model", display_name="concept_model",
                                tooltip="The base model with the adapter applied."),
                io.String.Output("report", display_name="report",
                                 tooltip="What was lost, in total and in the worst layers."),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, base_model, concept_model, rank, target_error) -> io.NodeOutput:
        return io.NodeOutput(*convert.extract(base_model, concept_model, rank, target_error))


class GCFGSaveConceptModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGSaveConceptModel",
            display_name="Save Concept Model",
            category=CATEGORY,
            description=("Saves a concept model: in its own format, or as a stock UNet or LoRA file that works without "
                         "this pack."),
            is_output_node=True,
            **aliases("lora", "save lora", "save unet", "export", "concept"),
            inputs=[
                io.Model.Input("model", tooltip="The concept model to save, with the LoRAs that are on it."),
                io.String.Input("filename_prefix", default="concept_models/concept", tooltip=(
                    "File name below the output folder. Files in concept_models appear in Load Concept Model, in "
                    "diffusion_models in Load Diffusion Model, in loras in Load LoRA.")),
                io.Combo.Input("dtype", options=list(concept_files.DTYPES), default="fp16", tooltip=(
                    "Number format: fp16 is half the size of fp32, bf16 has more range and less precision.")),
                io.Combo.Input("format", options=list(concept_files.FORMATS), default="concept", tooltip=(
                    "concept: the format of the paper, or an adapter. stock UNet: for Load Diffusion Model. stock "
                    "LoRA: for Load LoRA at strength 1.")),
                io.Model.Input("base_model", optional=True, tooltip=(
                    "Only for stock LoRA of a full concept model: the model that it was made from.")),
            ],
            outputs=[],
        )

    @classmethod
    @plain_errors
    def execute(cls, model, filename_prefix, dtype, format, base_model=None) -> io.NodeOutput:
        path = concept_files.save(model, filename_prefix, dtype, format, base_model)
        return io.NodeOutput(ui=ui.PreviewText(path))


NODES = [GCFGLoadConceptModel, GCFGConvertToNullText, GCFGExtractConceptAdapter, GCFGSaveConceptModel]
