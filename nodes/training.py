"""Nodes that train a concept model from a folder of pictures."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..gcfg.host.training import images
from ..gcfg.host.training import train as training
from ..gcfg.host.training.preview import NodeWatch
from ..gcfg.training import settings as choices
from ..gcfg.training.data.contact_sheet import contact_sheet
from ..gcfg.training.data.dataset import Source
from ..gcfg.training.settings import Settings
from .hosts import advanced as folded
from .hosts import aliases, plain_errors
from .sampling import MAX_SEED

CATEGORY = "GCFG/training"
ImagesSocket = io.Custom("GCFG_IMAGES")
DEFAULT = Settings()


def advanced(kind: type, name: str, tooltip: str, **options):
    """An optional setting for those who know."""
    return kind.Input(name, default=getattr(DEFAULT, name), optional=True, tooltip=tooltip, **options, **folded(kind))


class GCFGImageFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGImageFolder",
            display_name="Concept Image Folder",
            category=CATEGORY,
            description=("The pictures of a concept, without captions: finds them in a folder, encodes each once, and "
                         "keeps the latents on disk. Files that cannot be used are listed and skipped."),
            **aliases("dataset", "training pictures", "load images", "fine-tune", "dreambooth", "lora"),
            inputs=[
                io.Vae.Input("vae", tooltip="The autoencoder of the base model."),
                io.String.Input("folder", default="", tooltip=(
                    "A folder on the machine that runs ComfyUI, or one below its input folder; its sub-folders count. "
                    "Some hundred pictures of one kind, without captions.")),
                io.Int.Input("resolution", default=DEFAULT.resolution, min=64, max=2048, step=64, tooltip=(
                    "Side of a square picture in pixels: 512 for SD1.5, 1024 for SDXL.")),
                io.Combo.Input("crop", options=list(choices.CROPS), default=DEFAULT.crop, tooltip=(
                    "buckets: keep each picture's shape as nearly as the model can, at the same area. square: cut the "
                    "middle out.")),
                io.Boolean.Input("flip", default=DEFAULT.flip, tooltip=(
                    "Also train on mirrored pictures. Switch it off where left and right matter, as in writing.")),
                advanced(io.String, "resolutions", (
                    "Further resolutions, such as: 768, 1024. Every picture that is large enough is trained on at all "
                    "of them.")),
            ],
            outputs=[
                ImagesSocket.Output("images", display_name="images", tooltip="The pictures, for Train Concept Model."),
                io.String.Output("report", display_name="report",
                                 tooltip="How many pictures there are, which files were skipped, and why."),
                io.Image.Output("sheet", display_name="sheet", tooltip=(
                    "Pictures as they are cut, by size, and the files that were skipped: what is trained on at a "
                    "glance.")),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, **others):
        return images.listing(folder)

    @classmethod
    @plain_errors
    def execute(cls, vae, folder, resolution, crop, flip, resolutions="") -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(1)
        source = Source(str(images.locate(folder)), resolution, crop == "square", flip, choices.sizes_of(resolutions))
        found = images.prepare(source, vae, progress=bar.update_absolute)
        sheet = torch.from_numpy(contact_sheet(source, found.latents)).float().div(255).unsqueeze(0)
        return io.NodeOutput(found, found.latents.report(), sheet)


class GCFGTrainConceptModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGTrainConceptModel",
            display_name="Train Concept Model",
            category=CATEGORY,
            description=("Trains a concept model on pictures alone (arXiv 2312.08195): a copy of the base whose "
                         "cross-attention is constant. Interrupt it whenever you like; queueing it again goes on."),
            is_output_node=True,
            **aliases("fine-tune", "dreambooth", "train lora", "lora", "personalization", "style",
                      "textual inversion"),
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The base model. SD1.5 and SDXL classes become null-text models; transformers (SD3.5, Flux, "
                    "Qwen-Image, Z-Image, Wan) get a LoRA. It is not changed.")),
                io.Clip.Input("clip", tooltip="The base's text encoder, for the null text and the previews' prompt."),
                ImagesSocket.Input("images", tooltip="The pictures, from Concept Image Folder."),
                io.String.Input("run_name", default=DEFAULT.run_name, tooltip=(
                    "Name of the run's folder in output/concept_models. A run of that name goes on.")),
                io.Int.Input("target_steps", default=DEFAULT.target_steps, min=1, max=10_000_000, tooltip=(
                    "Optimizer steps at which the run is complete. Raise it later to go on.")),
                io.Combo.Input("method", options=list(choices.METHODS), default=DEFAULT.method, tooltip=(
                    "full: all weights, as in the paper. LoRA: low-rank weights on all layers, a small file that runs "
                    "on the base's own copy of the weights, with far less memory. LoHa, LoKr: these forms of a change "
                    "of weights, under the empty prompt, for Load LoRA.")),
                io.Int.Input("rank", default=DEFAULT.rank, min=1, max=1024, tooltip="Rank of the LoRA."),
                io.Combo.Input("memory", options=list(choices.MEMORY), default=DEFAULT.memory, tooltip=(
                    "How much GPU memory to plan for. Smaller presets are slower; the batch stays the same.")),
                io.Float.Input("learning_rate", default=DEFAULT.learning_rate, min=1e-8, max=1.0, step=1e-6, round=1e-8,
                               tooltip="0.00001 for full, 0.0001 suits LoRA."),
                io.Int.Input("batch", default=DEFAULT.batch, min=1, max=4096, tooltip=(
                    "Pictures per step. As many as fit are computed at a time; the result is that of the whole "
                    "batch.")),
                io.Boolean.Input("ema", default=DEFAULT.ema, tooltip=(
                    "Average the weights over many steps, which gives better pictures. The average is the result.")),
                # False, not None: the frontend gives every INT called seed a "randomize" of its own.
                io.Int.Input("seed", default=DEFAULT.seed, min=0, max=MAX_SEED, control_after_generate=False,
                             tooltip="Seed of noise, order and initial values. The same seed gives the same run."),
                io.Int.Input("save_every", default=DEFAULT.save_every, min=1, max=1_000_000, tooltip=(
                    "Steps between saves. A crash costs at most that many; an interruption costs none.")),
                io.Int.Input("preview_every", default=DEFAULT.preview_every, min=0, max=1_000_000, tooltip=(
                    "Steps between previews, sampled from base and concept together. 0 for none.")),
                advanced(io.String, "preview_prompt", "Control prompts of the previews, one a line.", multiline=True),
                advanced(io.Int, "preview_steps", "Sampling steps of the previews.", min=1, max=1000),
                advanced(io.Int, "held_out", "Pictures that are only measured on, at most a tenth of all.", min=0,
                         max=10_000),
                advanced(io.Int, "held_out_every", "Steps between measurements of the held-out loss. 0 for none.",
                         min=0, max=1_000_000),
                advanced(io.Combo, "schedule", "How the learning rate goes on after the warm-up.",
                         options=list(choices.SCHEDULES)),
                advanced(io.Int, "warm_up", "Steps over which the learning rate rises.", min=0, max=1_000_000),
                advanced(io.Combo, "optimizer", (
                    "auto: what the memory preset says. 8-bit needs the package bitsandbytes, lion lion-pytorch, "
                    "prodigy prodigyopt. With prodigy set learning_rate to 1."), options=list(choices.OPTIMIZERS)),
                advanced(io.Float, "weight_decay", "Weight decay of AdamW.", min=0.0, max=1.0, step=0.001),
                advanced(io.Float, "gradient_clip", "Largest norm of the gradient. 0 for no clipping.", min=0.0,
                         max=1000.0, step=0.1),
                advanced(io.Float, "ema_decay", "How slowly the average of the weights follows.", min=0.0, max=0.99999,
                         step=0.0001, round=0.00001),
                advanced(io.Combo, "ema_device", "Where the average is kept: cpu saves GPU memory.",
                         options=["auto", "model", "cpu"]),
                advanced(io.Combo, "precision", "Type of the trained weights; bfloat16 is rounded stochastically.",
                         options=list(choices.PRECISIONS)),
                advanced(io.Int, "micro_batch", "Pictures that are computed at a time. 0: what the preset says.", min=0,
                         max=4096),
                advanced(io.Combo, "checkpointing", "Recompute transformer blocks to save memory.",
                         options=["auto", "on", "off"]),
                advanced(io.Boolean, "fused_backward", (
                    "Update each weight in the backward pass: less memory, the batch computed at once, each gradient "
                    "clipped by itself.")),
                advanced(io.Float, "min_snr", "Min-SNR weighting of the loss (arXiv 2303.09556), 5 is usual. 0: off.",
                         min=0.0, max=100.0, step=0.5),
                advanced(io.Float, "noise_offset", "Random brightness of the noise, 0.05 is usual. 0: off.", min=0.0,
                         max=1.0, step=0.01),
                advanced(io.Int, "keep", "Saved states that are kept; one more lies there while it is written.", min=1,
                         max=100),
                advanced(io.Int, "export_every", (
                    "Steps between concept models that are kept under the number of their step, at saves. 0: only "
                    "the newest."), min=0, max=1_000_000),
                advanced(io.String, "preview_scales", "Concept scales that a preview shows side by side."),
                advanced(io.Int, "preview_count", "Pictures of a preview for each prompt and scale.", min=1, max=16),
                advanced(io.Combo, "timesteps", (
                    "Which noise levels are trained most. logit-normal favours the middle, as flow models (SD3, Flux) "
                    "are trained."), options=list(choices.TIMESTEPS)),
                advanced(io.String, "repeats", (
                    "How often pictures of sub-folders count in an epoch, such as: close_ups = 3, sketches = 2.")),
                advanced(io.Float, "undistill", (
                    "For a base with distilled guidance (Flux.1 dev: 3.5): keeps the distillation while training. 0 "
                    "for all others."), min=0.0, max=30.0, step=0.1),
                advanced(io.Combo, "ema_precision", (
                    "bfloat16 keeps the average in half the memory, and half the space in every save."),
                    options=list(choices.EMA_PRECISIONS)),
                advanced(io.Boolean, "compile", (
                    "Compile the transformer blocks (torch.compile): minutes at the start, faster steps after. Needs a "
                    "C++ compiler, on a GPU Triton.")),
            ],
            outputs=[
                io.Model.Output("concept_model", display_name="concept_model", tooltip=(
                    "The trained concept model, for the GCFG samplers.")),
                io.Image.Output("loss", display_name="loss", tooltip="Training and held-out loss over the steps."),
                io.String.Output("run_folder", display_name="run_folder", tooltip=(
                    "The run's folder: concept model, previews, losses, and all that is needed to go on.")),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name=DEFAULT.run_name, **others):
        """Runs again, rather than being taken from the host's cache, once the run's folder is gone."""
        return bool(run_name) and training.run_folder(Settings(run_name=run_name)).states.is_dir()

    @classmethod
    @plain_errors
    def execute(cls, model, clip, images, **values) -> io.NodeOutput:
        settings = Settings(**values)
        watch = NodeWatch(settings.target_steps)
        made = training.train(model, clip, images, settings, watch)
        comfy.model_management.throw_exception_if_processing_interrupted()
        loss = training.loss_image(made)
        watch.finish(loss)
        return io.NodeOutput(made.model, loss, str(made.folder.path), ui=ui.PreviewImage(loss, cls=cls))


NODES = [GCFGImageFolder, GCFGTrainConceptModel]
