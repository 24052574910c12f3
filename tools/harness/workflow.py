"""Workflows in API format: shrunk to the tiny models, with the input images that they name."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .models.files import ModelFiles
from .packs import needed, pack_of

# The input of a loader node that names a file, and the field of ``ModelFiles`` that takes its place.
_LOADERS = {
    "ckpt_name": "checkpoint",
    "unet_name": "unet",
    "lora_name": "lora",
    "control_net_name": "controlnet",
    "concept_name": "concept",
    "clip_file": "full_clip",
    "ipadapter_file": "ip_adapter",
    "model_name": "motion",
}
# Nodes whose files are large in every form that the host takes.
_LARGE = {"PhotoMakerLoader": "it needs an SDXL checkpoint and PhotoMaker, which have no small form"}
_IMAGE_NODES = ("LoadImage", "LoadImageMask", "LoadImageOutput")


def read(path: Path) -> dict:
    """A workflow in API format; a graph saved for the frontend is refused with a hint."""
    workflow = json.loads(Path(path).read_text())
    if not isinstance(workflow, dict) or "nodes" in workflow:
        raise ValueError(f"{path} is not in API format (in ComfyUI: Workflow, Export (API))")
    return {key: node for key, node in workflow.items() if isinstance(node, dict) and "class_type" in node}


def too_large(workflow: dict) -> str:
    """Why a workflow cannot run on small models; empty if it can."""
    if "UNETLoader" in kinds(workflow) and not loads_a_checkpoint(workflow):
        return "it loads the files of its family, which have no small form here"
    return next((reason for kind, reason in _LARGE.items() if kind in kinds(workflow)), "")


def foreign(workflow: dict) -> str:
    """Which other packs a workflow needs; empty for none."""
    names = " and ".join(pack.folder for pack in needed(kinds(workflow)))
    return names and f"it needs the pack {names}"


def without_other_packs(workflow: dict) -> dict:
    """A copy without the nodes of other packs: what took a model from one takes the model that went into it."""
    dropped = {key for key, node in workflow.items() if pack_of(node["class_type"])}

    def source(value):
        while isinstance(value, list) and value[0] in dropped:
            value = workflow[value[0]]["inputs"]["model"]
        return value
    return {key: node | {"inputs": {name: source(value) for name, value in node["inputs"].items()}}
            for key, node in workflow.items() if key not in dropped}


def kinds(workflow: dict) -> set[str]:
    """The nodes of a workflow."""
    return {node["class_type"] for node in workflow.values()}


def stock(prompt: str = "a cat", seed: int = 1) -> dict:
    """Text to image with stock nodes only."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "model.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
                "seed": seed, "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "stock"}},
    }


def canonical(api: dict) -> list[str]:
    """A workflow in API format whatever its node numbers and the order of its nodes, to compare."""

    def describe(key):
        node = api[key]
        inputs = node["inputs"]
        if node["class_type"] == "GCFGGuidanceStack":  # older hosts, whose inputs do not grow, send unused rows along
            rows = int(inputs["guidances"])
            inputs = {name: value for name, value in inputs.items()
                      if not name.startswith("guidances.") or int(name.rpartition("_")[2]) <= rows}
        return [node["class_type"], {name: plain(value) for name, value in inputs.items()}]

    def plain(value):
        if isinstance(value, list):
            return [describe(value[0]), value[1]]
        return int(value) if isinstance(value, float) and value.is_integer() else value  # JavaScript has one number

    return sorted(json.dumps(describe(key), sort_keys=True) for key in api)


def loads_a_checkpoint(graph: dict) -> bool:
    """False for workflows that load diffusion model, text encoder and VAE one by one, as transformers do."""
    return "CheckpointLoaderSimple" in kinds(graph)


def adapt(workflow: dict, files: ModelFiles, size: int | None = None, steps: int | None = None) -> dict:
    """A copy that loads ``files`` and, where given, makes images of ``size`` pixels in ``steps`` steps.

    The longest side of all becomes ``size``; what is smaller or not square keeps its ratio, in steps of 16 pixels.
    Fewer steps also mean that a conversion measures on one latent only, and a training is as short.
    An empty name in ``files`` keeps the file that the workflow names.
    """
    adapted = copy.deepcopy(workflow)
    sized = [node["inputs"] for node in adapted.values() if _has_size(node["inputs"])]
    longest = max((inputs[side] for inputs in sized for side in ("width", "height")), default=1)
    for inputs in sized if size is not None else ():
        for side in ("width", "height"):
            inputs[side] = max(16, round(inputs[side] * size / longest / 16) * 16)
    for node in adapted.values():
        inputs = node["inputs"]
        for name, field in _LOADERS.items():
            if isinstance(inputs.get(name), str):
                inputs[name] = getattr(files, field) or inputs[name]
        if node["class_type"] == "CLIPVisionLoader":
            inputs["clip_name"] = files.full_clip or inputs["clip_name"]
        if steps is not None and _is_number(inputs.get("steps")):
            _shorten(inputs, steps)
        if steps is not None and _is_number(inputs.get("samples")):
            inputs["samples"] = 1
        if size is not None and _is_number(inputs.get("resolution")):
            inputs["resolution"] = size
        if steps is not None and _is_number(inputs.get("target_steps")):
            inputs |= {"target_steps": steps, "preview_steps": steps, "batch": 2}
        if steps is not None and _is_number(inputs.get("variants")):
            inputs["variants"] = steps
        if steps is not None and _is_number(inputs.get("views")):
            inputs["views"] = 1
    return adapted


def provide_images(workflow: dict, folder: Path, size: int = 64, shown: Sequence[Image.Image] = ()) -> list[Path]:
    """Draw every image that a workflow loads and ``folder`` does not have: a disc on a gradient, half transparent.

    A folder of pictures becomes one below ``folder``, with a few of them.

    Args:
        shown: pictures to use in place of drawn ones: the first where one is loaded, the others in a folder.
    """
    drawn = []
    for node in workflow.values():
        if node["class_type"] in ("GCFGImageFolder", "GCFGSubjectImages"):
            place = folder / "pictures"
            place.mkdir(parents=True, exist_ok=True)
            for k, picture in enumerate(shown[1:] or [Image.fromarray(_disc(size + k)) for k in range(4)]):
                picture.save(place / f"{k}.png")
            node["inputs"]["folder"] = str(place)
        name = node["inputs"].get("image")
        if node["class_type"] not in _IMAGE_NODES or not isinstance(name, str):
            continue
        path = folder / name.split(" [")[0]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            (shown[0] if shown else Image.fromarray(_disc(size))).save(path)
            drawn.append(path)
    return drawn


def _disc(size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / max(size - 1, 1)
    inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09
    pixels = np.stack([x, y, np.where(inside, 1.0, 0.2), np.where(x < 0.5, 1.0, 0.5)], axis=-1)
    return (pixels * 255).astype(np.uint8)


def _shorten(inputs: dict, steps: int) -> None:
    """Fewer steps, with a first and a last step at the same share of them."""
    before = inputs["steps"]
    for name in ("start_at_step", "end_at_step"):
        if _is_number(inputs.get(name)) and inputs[name] <= before:
            inputs[name] = round(inputs[name] * steps / before)
    inputs["steps"] = steps


def _has_size(inputs: dict) -> bool:
    return all(_is_number(inputs.get(side)) and inputs[side] > 0 for side in ("width", "height"))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
