#!/usr/bin/env python3
"""Write workflows/ from tools/templates: API files, graphs for the frontend, and their thumbnails.

    python tools/make_workflows.py [title ...] [--results out]

``out`` is a folder of tools/try_in_comfyui.py: what workflows make then fills their thumbnails. The real frontend of
a ComfyUI (found as the tests find it) makes each graph out of its API file.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from PIL import Image, ImageOps

from harness.find import PACK, find_host
from harness.server.browser import browse
from harness.server.serve import serve
from harness.workflow import provide_images
from templates import WORKFLOWS
from templates.layout import MARGIN, TITLE, arrange, is_ours
from templates.parts import SOURCES, Workflow

HOST_VERSION = "0.3.64"  # the oldest ComfyUI that the workflows run on
FOLDERS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models", "lora_name": "loras",
           "control_net_name": "controlnet", "concept_name": "concept_models", "clip_name": "clip_vision",
           "clip_file": "text_encoders", "photomaker_model_name": "photomaker",
           "clip_name1": "text_encoders", "clip_name2": "text_encoders", "vae_name": "vae"}
THUMBNAIL, GROUND = (480, 480), "#1c1c1f"
STRIP = 130
"""Height of the graph below a result in a thumbnail."""


def to_api(workflow: Workflow) -> dict:
    """The workflow in API format, its nodes numbered from left to right."""
    nodes = workflow.nodes()
    numbers = {name: str(number) for number, name in enumerate(nodes, start=1)}

    def link(value):
        return [numbers[value[0]], value[1]] if isinstance(value, tuple) else value

    return {
        numbers[name]: {
            "class_type": node.kind,
            "inputs": {key: link(value) for key, value in node.inputs.items()},
            **({"_meta": {"title": node.title}} if node.title else {}),
        }
        for name, node in nodes.items()
    }


def stamp(graph: dict, workflow: Workflow, version: str) -> dict:
    """Say which pack and version each node comes from, where its model file can be had, and what an app shows."""
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        ours = is_ours(node)
        node["properties"] |= {"cnr_id": "gcfg" if ours else "comfy-core", "ver": version if ours else HOST_VERSION}
        models = [{"name": name, "url": SOURCES[name][1], "directory": directory(name, node["type"])}
                  for name in node.get("widgets_values", []) if name in SOURCES]
        if models:
            node["properties"]["models"] = models
    graph["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"gcfg/{workflow.title}"))
    if workflow.app:
        numbers = {name: str(number) for number, name in enumerate(workflow.nodes(), start=1)}
        graph["extra"] |= {"linearMode": True, "linearData": {
            "inputs": [[numbers[node], widget] for node, widget in workflow.app.inputs],
            "outputs": [numbers[node] for node in workflow.app.outputs]}}
    return graph


def directory(name: str, kind: str) -> str:
    """The models folder from which a node of this kind loads a file."""
    place = SOURCES[name][0]
    return place[kind] if isinstance(place, dict) else place


def place_files(base: Path, host: Path) -> None:
    """The host's example image or a drawn one, and an empty file for every model that a workflow names."""
    shutil.copytree(host / "input", base / "input")
    for workflow in WORKFLOWS:
        provide_images(to_api(workflow), base / "input", 512)
        for node in workflow.nodes().values():
            for key, folder in FOLDERS.items():
                if key in node.inputs:
                    name = node.inputs[key]
                    path = base / "models" / (directory(name, node.kind) if name in SOURCES else folder) / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()


def write(frontend, workflow: Workflow, folder: Path, version: str, results: Path | None) -> None:
    """The API file, the graph and its thumbnail of one workflow.

    Args:
        results: a folder with what workflows make, ``<title>.png``, for their thumbnails.
    """
    api = to_api(workflow)
    _dump(api, folder / "api" / f"{workflow.title}.json")
    graph = stamp(arrange(frontend.from_api(api, workflow.title), workflow), workflow, version)
    _dump(graph, folder / f"{workflow.title}.json")
    frontend.load({**graph, "extra": {**graph["extra"], "linearMode": False}})
    picture = folder / f"{workflow.title}.jpg"
    frontend.screenshot(picture, margin=MARGIN)
    with Image.open(picture) as shot:
        image = shot.crop(_filled(graph, *shot.size))
    result = results and results / f"{workflow.title}.png"
    thumbnail(image, Image.open(result) if result and result.is_file() else None).save(picture, quality=88)


def thumbnail(graph: Image.Image, result: Image.Image | None) -> Image.Image:
    """What a workflow makes, large, above its small graph; the graph alone where there is no result yet."""
    width, height = THUMBNAIL
    if result is None:
        small = ImageOps.contain(graph, THUMBNAIL, Image.Resampling.LANCZOS)
        return ImageOps.pad(small, (width, small.height), color=GROUND)
    sheet = Image.new("RGB", THUMBNAIL, GROUND)
    small = ImageOps.contain(graph, (width, STRIP), Image.Resampling.LANCZOS)
    sheet.paste(small, ((width - small.width) // 2, height - STRIP + (STRIP - small.height) // 2))
    how = Image.Resampling.LANCZOS if max(result.size) > height else Image.Resampling.BICUBIC
    large = ImageOps.contain(result.convert("RGB"), (width, height - STRIP - 8), how)
    sheet.paste(large, ((width - large.width) // 2, (height - STRIP - 8 - large.height) // 2))
    return sheet


def _filled(graph: dict, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a screenshot of this size that the graph fills, across or down, in the middle."""
    boxes = [node["pos"] + node["size"] for node in graph["nodes"]]
    boxes += [group["bounding"] for group in graph["groups"]]
    across = max(x + w for x, _, w, _ in boxes) - min(x for x, *_ in boxes)
    down = max(y + h for _, y, _, h in boxes) - min(y for _, y, *_ in boxes) + TITLE
    scale = min((width - 2 * MARGIN) / across, (height - 2 * MARGIN) / down, 1)
    x, y = (max(0, round((full - size * scale) / 2) - MARGIN) for full, size in ((width, across), (height, down)))
    return x, y, width - x, height - y


def _dump(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write workflows/ from tools/templates.")
    parser.add_argument("titles", nargs="*", help="of the workflows to write; all without any")
    parser.add_argument("--results", type=Path, help="folder with <title>.png, what the workflows make, for thumbnails")
    options = parser.parse_args()
    titles, known = options.titles, {workflow.title for workflow in WORKFLOWS}
    if unknown := sorted({*titles} - known):
        parser.error(f"there is no workflow {', '.join(map(repr, unknown))}; titles begin with their number.")
    version = re.search(r'^version = "(.+)"$', (PACK / "pyproject.toml").read_text(), re.MULTILINE)[1]
    chosen = [workflow for workflow in WORKFLOWS if not titles or workflow.title in titles]
    host = find_host()
    with tempfile.TemporaryDirectory(prefix="gcfg-workflows-") as base:
        place_files(Path(base), host)
        with serve(host, Path(base)) as server, browse(server) as frontend:
            for workflow in chosen:
                write(frontend, workflow, PACK / "workflows", version, options.results)
                print(workflow.title)


if __name__ == "__main__":
    main()
