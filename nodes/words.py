"""Words of several things, told apart before they are trained: thin over ``gcfg.host.training.subjects.words``."""

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui

from ..gcfg.host.training.preview import NodeWatch
from ..gcfg.host.training.subjects import words
from ..gcfg.host.training.train import loss_image
from ..gcfg.training.data.words import WordSettings
from .hosts import aliases, plain_errors
from .sampling import MAX_SEED
from .subjects import CATEGORY, SubjectSocket

WORDS = WordSettings()


class GCFGTuneWords(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGTuneWords",
            display_name="Tune Concept Words",
            category=CATEGORY,
            description=("Tells several things apart before a diffusion model learns them (CLIF, arXiv 2405.06914): "
                         "one new word each, tuned against pictures of them whole, in parts and mixed. Train Subject "
                         "goes on from these words."),
            is_output_node=True,
            **aliases("textual inversion", "embedding", "word", "subject", "personalization"),
            inputs=[
                io.Clip.Input("clip", tooltip="The base's text encoder. It is not changed."),
                io.ClipVision.Input("clip_vision", tooltip="The vision model of CLIP-L (ViT-L/14)."),
                io.Combo.Input("clip_file", options=folder_paths.get_filename_list("text_encoders"), tooltip=(
                    "A full CLIP-L file, for its text projection; checkpoints hold none.")),
                SubjectSocket.Input("images_1", tooltip="Pictures of the first thing, from Subject Images."),
                SubjectSocket.Input("images_2", tooltip="Pictures of the second thing."),
                io.String.Input("names", default="joe, wukong", tooltip=(
                    "Names of the new words in this order, separated by commas: letters, digits and _.")),
                io.String.Input("nouns", default="man, monkey", tooltip=(
                    "What each thing is, in one common word each, separated by commas.")),
                io.String.Input("run_name", default=WORDS.run_name, tooltip=(
                    "Name of the run's folder in output/subjects. A run of that name goes on.")),
                io.Int.Input("target_steps", default=WORDS.target_steps, min=1, max=1_000_000, tooltip=(
                    "Optimizer steps at which the run is complete. Raise it later to go on.")),
                io.Float.Input("learning_rate", default=WORDS.learning_rate, min=1e-8, max=1.0, step=1e-5, round=1e-8,
                               tooltip="0.0001 is the paper's."),
                io.Int.Input("batch", default=WORDS.batch, min=2, max=4096, tooltip=(
                    "Views that are contrasted with each other in a step.")),
                io.Int.Input("views", default=WORDS.views, min=1, max=1024, tooltip=(
                    "Whole views and regions of each thing, and mixes of each pair.")),
                io.Int.Input("seed", default=WORDS.seed, min=0, max=MAX_SEED, control_after_generate=False,
                             tooltip="Seed of views and order. The same seed gives the same run."),
                *(SubjectSocket.Input(f"images_{k}", optional=True, tooltip="Pictures of a further thing.")
                  for k in range(3, 7)),
            ],
            outputs=[
                io.String.Output("prompt", display_name="prompt", tooltip=(
                    "All words in one prompt: embedding:joe and embedding:wukong.")),
                io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
                io.String.Output("run_folder", display_name="run_folder", tooltip=(
                    "The run's folder: how to use the words, losses, and all that is needed to go on.")),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, clip, clip_vision, clip_file, **values) -> io.NodeOutput:
        given = [values.pop(f"images_{k}", None) for k in range(1, 7)]
        settings = WordSettings(**values)
        projection = words.read_projection(folder_paths.get_full_path_or_raise("text_encoders", clip_file))
        watch = NodeWatch(settings.target_steps)
        made = words.tune(clip, clip_vision, projection, [images for images in given if images is not None], settings,
                          watch)
        comfy.model_management.throw_exception_if_processing_interrupted()
        loss = loss_image(made)
        watch.finish(loss)
        return io.NodeOutput(" and ".join(made.prompts), loss, str(made.folder.path), ui=ui.PreviewImage(loss, cls=cls))


NODES = [GCFGTuneWords]
