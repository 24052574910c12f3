"""Nodes that teach a model things of one's own from a few pictures."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui

from ..gcfg.host.training import images as listing
from ..gcfg.host.training.models.captioned import with_lora
from ..gcfg.host.training.preview import NodeWatch
from ..gcfg.host.training.subjects import files as subject_files
from ..gcfg.host.training.subjects import train as training
from ..gcfg.host.training.train import loss_image
from ..gcfg.training import subject_settings
from ..gcfg.training.data.variants import Subject
from ..gcfg.training.subject_settings import SubjectSettings
from .hosts import aliases, plain_errors
from .sampling import MAX_SEED

CATEGORY = "GCFG/training"
SubjectSocket = io.Custom("GCFG_SUBJECT")
DEFAULT = SubjectSettings(class_word="thing")


class GCFGSubjectImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGSubjectImages",
            display_name="Subject Images",
            category=CATEGORY,
            description=("Three to five pictures of one thing, as many scaled, placed and captioned variants of them. "
                         "Encodes each once and keeps the latents on disk."),
            **aliases("dataset", "few pictures", "dreambooth", "subject", "personalization",
                      "textual inversion"),
            inputs=[
                io.Vae.Input("vae", tooltip="The autoencoder of the base model."),
                io.String.Input("folder", default="", tooltip=(
                    "A folder on the machine that runs ComfyUI with 2 to 100 pictures of one thing; let everything "
                    "differ but the thing.")),
                io.Int.Input("resolution", default=DEFAULT.resolution, min=64, max=2048, step=64, tooltip=(
                    "Side of the square variants in pixels: 512 for SD1.5, 1024 for SDXL.")),
                io.Boolean.Input("flip", default=True, tooltip=(
                    "Mirror half of the variants. Switch it off where left and right matter, as in writing.")),
                io.Boolean.Input("augment", default=True, tooltip=(
                    "Scale and place the pictures and say so in their captions (far away, close up), so that the thing "
                    "is learned at every size.")),
                io.String.Input("masks", default="", optional=True, tooltip=(
                    "A folder with a mask a picture under the same name and of the same size, white where the thing "
                    "is: what is outside is not learned. Empty for none.")),
                io.Int.Input("variants", default=DEFAULT.variants, min=1, max=4096, optional=True,
                             tooltip="How many variants are made in all."),
            ],
            outputs=[
                SubjectSocket.Output("images", display_name="images", tooltip="The pictures, for Train Subject."),
                io.String.Output("report", display_name="report", tooltip="Which pictures there are."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, masks="", **others):
        return listing.listing(folder) + listing.listing(masks)

    @classmethod
    @plain_errors
    def execute(cls, vae, folder, resolution, flip, augment, masks="", variants=DEFAULT.variants) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(variants)
        drawn = str(listing.locate(masks, "the folder with the masks")) if masks.strip() else ""
        source = Subject(str(listing.locate(folder)), drawn, resolution, augment, flip, variants)
        found = training.prepare(source, vae, progress=bar.update_absolute)
        return io.NodeOutput(found, found.report())


class GCFGTrainSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGTrainSubject",
            display_name="Train Subject",
            category=CATEGORY,
            description=("Teaches a model one thing from a few pictures so that it still listens (ClassDiffusion, "
                         "arXiv 2405.17532): a new word, embedding:NAME, and weights that know it. Both become files "
                         "that ComfyUI reads without this pack."),
            is_output_node=True,
            **aliases("dreambooth", "textual inversion", "custom diffusion", "lora", "fine-tune", "subject",
                      "personalization", "class diffusion"),
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The base model; one that reads CLIP learns a new word. It is not changed.")),
                io.Clip.Input("clip", tooltip="The base's text encoder. It is not changed."),
                SubjectSocket.Input("images", tooltip="The pictures, from Subject Images."),
                io.String.Input("name", default="my_subject", tooltip=(
                    "Name of the new word and of the files: letters, digits and _. A run of that name goes on.")),
                io.String.Input("class_word", default="dog", tooltip=(
                    "What the thing is, in one common word: dog, cup, face. It carries what the base knows of such "
                    "things.")),
                io.Int.Input("target_steps", default=DEFAULT.target_steps, min=1, max=1_000_000, tooltip=(
                    "Optimizer steps at which the run is complete. Raise it later to go on.")),
                io.Combo.Input("method", options=list(subject_settings.METHODS), default=DEFAULT.method, tooltip=(
                    "K and V: keys and values of the cross-attention, as in the paper. LoRA: low-rank weights on all "
                    "layers. rows: the word alone.")),
                io.Int.Input("rank", default=DEFAULT.rank, min=1, max=1024, tooltip="Rank of the LoRA."),
                io.Float.Input("semantic_weight", default=DEFAULT.semantic_weight, min=0.0, max=100.0, step=0.05,
                               tooltip=(
                    "How strongly the word stays what its class is: more listens better, less resembles more. 0.25 is "
                    "the paper's value.")),
                io.Float.Input("learning_rate", default=DEFAULT.learning_rate, min=1e-8, max=1.0, step=1e-6, round=1e-8,
                               tooltip="0.00002 for K and V, 0.0001 suits LoRA, 0.005 the word alone."),
                io.Int.Input("batch", default=DEFAULT.batch, min=1, max=64, tooltip="Variants per step."),
                io.Int.Input("seed", default=DEFAULT.seed, min=0, max=MAX_SEED, control_after_generate=False,
                             tooltip="Seed of noise, order and initial values. The same seed gives the same run."),
                io.Int.Input("save_every", default=DEFAULT.save_every, min=1, max=1_000_000, tooltip=(
                    "Steps between saves. A crash costs at most that many; an interruption costs none.")),
                io.Int.Input("preview_every", default=DEFAULT.preview_every, min=0, max=1_000_000,
                             tooltip="Steps between previews. 0 for none."),
                io.String.Input("preview_prompt", default="", optional=True, tooltip=(
                    "What the previews add to the thing, such as: wearing sunglasses.")),
                io.Int.Input("preview_steps", default=DEFAULT.preview_steps, min=1, max=1000, optional=True,
                             tooltip="Sampling steps of the previews."),
                io.Combo.Input("memory", options=list(SubjectSettings.CHOICES["memory"]), default="auto", optional=True,
                               tooltip="How much GPU memory to plan for."),
                io.Int.Input("words", default=DEFAULT.words, min=1, max=8, optional=True,
                             tooltip="Rows of the new word; more remember more and take more of the prompt."),
                io.String.Input("initial_word", default=DEFAULT.initial_word, optional=True, tooltip=(
                    "A rare word that the new one starts from.")),
                io.String.Input("initial_embedding", default="", optional=True, tooltip=(
                    "An embedding to start from instead, such as one by Tune Concept Words.")),
            ],
            outputs=[
                # Older hosts refuse an output with the id of an input.
                io.Model.Output("subject_model", display_name="model", tooltip=(
                    "The model that knows the thing; clones of the base, so both run on one copy of the weights.")),
                io.String.Output("prompt", display_name="prompt", tooltip=(
                    "The thing in a prompt: embedding:NAME and its class word.")),
                io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
                io.String.Output("run_folder", display_name="run_folder", tooltip=(
                    "The run's folder: how to use it, previews, losses, and all that is needed to go on.")),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, model, clip, images, name, **values) -> io.NodeOutput:
        settings = SubjectSettings(run_name=name, **values)
        watch = NodeWatch(settings.target_steps)
        made = training.train(model, clip, images, settings, watch)
        comfy.model_management.throw_exception_if_processing_interrupted()
        loss = loss_image(made)
        watch.finish(loss)
        return io.NodeOutput(made.model, made.prompt, loss, str(made.folder.path), ui=ui.PreviewImage(loss, cls=cls))


class GCFGImportSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGImportSubject",
            display_name="Import Official Subject",
            category=CATEGORY,
            description=("Makes an embedding and a LoRA that ComfyUI reads of the files of an official ClassDiffusion "
                         "or Custom Diffusion run."),
            **aliases("import", "custom diffusion", "class diffusion", "diffusers", "subject", "dreambooth"),
            inputs=[
                io.Model.Input("model", tooltip="The base model of the run, SD1.5 class. It is not changed."),
                io.String.Input("folder", default="", tooltip=(
                    "Output folder of the run, on the machine that runs ComfyUI: pytorch_custom_diffusion_weights and "
                    "<new1>.bin.")),
                io.String.Input("name", default="my_subject", tooltip=(
                    "Name of the word and of the LoRA: letters, digits and _. Nothing is overwritten.")),
            ],
            outputs=[
                # Older hosts refuse an output with the id of an input.
                io.Model.Output("imported_model", display_name="model",
                                tooltip="The model with the run's keys and values."),
                io.String.Output("prompt", display_name="prompt", tooltip="The new words in a prompt."),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, model, folder, name) -> io.NodeOutput:
        place = listing.locate(folder, "the output folder of the official run")
        lora, prompts = subject_files.import_official(place, name, model)
        return io.NodeOutput(with_lora(model, lora), " and ".join(prompts))


NODES = [GCFGSubjectImages, GCFGTrainSubject, GCFGImportSubject]
