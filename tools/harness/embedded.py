"""Workflows without ComfyUI: those whose graph is a recipe of UNets and prompts, on the same files, by diffusers.

Needs the packages of ``gcfg[diffusers]``; import it only where they are.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image, ImageDraw

from gcfg.guidance import BASE, UNCONDITIONAL, Guidance, Prediction, Recipe
from gcfg.pipelines import concept_unet, guided, load, text

KNOWN = {"CheckpointLoaderSimple", "UNETLoader", "CLIPTextEncode", "EmptyLatentImage", "VAEDecode", "SaveImage",
         "PreviewAny", "GCFGKSampler", "GCFGGuidance", "GCFGLoadConceptModel"}
"""The nodes that a pipeline stands for."""
COLUMNS, LABEL = 4, 110
"""Pictures in a row of a sheet, and the width of what stands before them."""


class NeedsComfyUI(ValueError):
    """A workflow that does more than a pipeline can."""


@dataclass(frozen=True)
class Request:
    """A workflow as a recipe, with the files of its models and the prompts of its conditionings by name."""

    recipe: Recipe
    checkpoint: str
    models: dict[str, str]
    prompts: dict[str, str]
    seed: int
    steps: int
    size: tuple[int, int]


def read(graph: dict) -> Request:
    """The recipe of a workflow in API format.

    Raises:
        NeedsComfyUI: it has other nodes, or not just one sampler.
    """
    samplers = [node for node in graph.values() if node["class_type"] == "GCFGKSampler"]
    if odd := sorted({node["class_type"] for node in graph.values()} - KNOWN):
        raise NeedsComfyUI(f"needs ComfyUI for {odd[0]}")
    if len(samplers) != 1:
        raise NeedsComfyUI("needs ComfyUI: no pipeline has just these samplers")
    inputs, models, prompts = samplers[0]["inputs"], {}, {}

    def node(link) -> dict:
        return graph[link[0]]

    def prediction(model, conditioning) -> Prediction:
        """The names of a model's and a conditioning's node, which are noted; None stands for the sampler's own."""
        own = model is None or node(model)["class_type"] == "CheckpointLoaderSimple"
        name, texts = BASE if own else f"model {model[0]}", UNCONDITIONAL
        if not own:
            loader = node(model)["inputs"]
            models[name] = loader.get("unet_name") or loader["concept_name"]
            if loader.get("strength", 1.0) != 1.0:
                raise NeedsComfyUI("needs ComfyUI for the strength of a concept model")
        if conditioning is not None:
            texts = f"text {conditioning[0]}"
            prompts[texts] = node(conditioning)["inputs"]["text"]
        return Prediction(name, texts)

    def chain(link) -> list[Guidance]:
        if link is None:
            return []
        own = node(link)["inputs"]
        if own["reference"] != "unconditional" or own.keys() & {"schedule", "shaping", "mask"}:
            raise NeedsComfyUI("needs ComfyUI for its references, schedules, shapings and masks")
        towards = prediction(own.get("model"), own.get("conditioning"))
        return [*chain(own.get("guidance")), Guidance(towards, scale=own["scale"], start=own["start_percent"],
                                                      end=own["end_percent"], name=own.get("name", ""))]

    prompts[UNCONDITIONAL] = node(inputs["negative"])["inputs"]["text"]
    control = prediction(inputs["model"], inputs["positive"])
    guidances = [Guidance(control, scale=inputs["control_scale"], name="control")]
    if inputs.get("concept_model") is not None:
        concept = prediction(inputs["concept_model"], None)
        guidances.append(Guidance(concept, scale=inputs["concept_scale"], name="concept"))
    latent = node(inputs["latent_image"])["inputs"]
    return Request(Recipe((*guidances, *chain(inputs.get("guidance")))), node(inputs["model"])["inputs"]["ckpt_name"],
                   models, prompts, inputs["seed"], inputs["steps"], (latent["width"], latent["height"]))


def rows_of(request: Request) -> dict[str, Request]:
    """What a sheet compares, by label: parts of the recipe where it has several, and the recipe."""
    guidances = request.recipe.guidances
    base = tuple(g for g in guidances if g.prediction.model == BASE)
    rows = {"base alone": base[:1]}
    rows |= {f"{g.name or 'concept'} alone": (replace(g, scale=1.0),) for g in guidances if g not in base}
    rows = {label: replace(request, recipe=Recipe(part)) for label, part in rows.items() if part != guidances}
    return rows | {"GCFG": request}


class Pipelines:
    """Runs requests on the files below ``folder``, laid out as the ``models`` of a ComfyUI; loads each file once."""

    def __init__(self, folder: Path):
        self.folder, self._checkpoints, self._concepts = folder, {}, {}

    def sheet(self, request: Request, progress: Callable[[int, int], None]) -> bytes:
        """A PNG with a row of pictures for the base alone, each other model alone, and the recipe; equal noise."""
        rows = rows_of(request)
        total, (width, height) = len(rows) * request.steps, request.size
        sheet = Image.new("RGB", (LABEL + COLUMNS * width, len(rows) * height), "white")
        for i, (label, row) in enumerate(rows.items()):
            ImageDraw.Draw(sheet).text((6, i * height + height // 2 - 6), label, "black")
            done = i * request.steps
            pictures = self.run(row, COLUMNS, lambda step, _, done=done: progress(done + step, total))
            for k, picture in enumerate(pictures):
                sheet.paste(picture, (LABEL + k * width, i * height))
        file = io.BytesIO()
        sheet.save(file, "png")
        return file.getvalue()

    def run(self, request: Request, count: int, progress: Callable[[int, int], None]):
        """``count`` pictures (PIL) of a request, by DPM++ 2M on the noise levels of the paper's code."""
        if request.checkpoint not in self._checkpoints:
            self._checkpoints[request.checkpoint] = load(self.folder / "checkpoints" / request.checkpoint)
        pipeline = self._checkpoints[request.checkpoint]
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config,
                                                                     timestep_spacing="linspace")
        models = {name: self._concept(file, request.checkpoint) for name, file in request.models.items()}
        texts = {name: text(pipeline, prompt) for name, prompt in request.prompts.items()}
        width, height = request.size

        def note(pipe, step, timestep, values):
            progress(step + 1, request.steps)
            return values

        with guided(pipeline, request.recipe, models, texts):
            return pipeline("", guidance_scale=1.0, num_inference_steps=request.steps, num_images_per_prompt=count,
                            width=width, height=height, generator=torch.Generator().manual_seed(request.seed),
                            callback_on_step_end=note).images

    def _concept(self, file: str, checkpoint: str):
        if (file, checkpoint) not in self._concepts:
            folders = (self.folder / "concept_models", self.folder / "diffusion_models")
            path = next((folder / file for folder in folders if (folder / file).is_file()), folders[-1] / file)
            self._concepts[file, checkpoint] = concept_unet(path, self._checkpoints[checkpoint].unet)
        return self._concepts[file, checkpoint]
