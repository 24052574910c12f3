#!/usr/bin/env python3
"""Write workflows/ from tools/workflow_graphs.py: API files, graphs for the frontend, and their thumbnails.

    python tools/make_workflows.py [title ...]

The real frontend of a ComfyUI (found as the tests find it) makes each graph out of its API file.
"""

import json
import re
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from PIL import Image
from workflow_graphs import WORKFLOWS
from workflow_parts import SOURCES, Workflow

from harness.find import PACK, find_host
from harness.server.browser import browse
from harness.server.serve import serve

HOST_VERSION = "0.3.64"  # the oldest ComfyUI that the workflows run on
FOLDERS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models", "lora_name": "loras",
           "control_net_name": "controlnet", "concept_name": "concept_models"}
WIDTHS = {"CheckpointLoaderSimple": 340, "UNETLoader": 340, "ControlNetLoader": 340, "LoraLoaderModelOnly": 340,
          "GCFGLoadConceptModel": 340, "CLIPTextEncode": 340, "GCFGInspector": 460, "GCFGKSampler": 300,
          "KSampler": 300}
HEIGHTS = {"CLIPTextEncode": 110, "GCFGInspector": 400, "PreviewAny": 190, "SaveImage": 400, "LoadImage": 330}
TITLE, GAP, MARGIN, HEADER = 30, 30, 20, 50
BADGE = 45  # the Vue renderer draws the nodes of a pack so much taller than the classic one
NOTE_HEIGHT = 105
THUMBNAIL = 480


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


def is_ours(node: dict) -> bool:
    """Whether a node of a graph is one of this pack."""
    return node["type"].startswith("GCFG")


def arrange(graph: dict, workflow: Workflow) -> dict:
    """Place the nodes in columns under a note, each column in a group."""
    by_id = {str(node["id"]): node for node in graph["nodes"]}
    left, bottom, number, groups = 0, 0, 0, []
    for title, column in workflow.columns.items():
        members = [by_id[str(number + k)] for k in range(1, len(column) + 1)]
        number += len(column)
        for node in members:
            node["size"] = [max(node["size"][0], WIDTHS.get(node["type"], 0)),
                            max(node["size"][1], HEIGHTS.get(node["type"], 0))]
        width, top = max(node["size"][0] for node in members), HEADER + TITLE
        for node in members:
            node["pos"], node["size"][0] = [left + MARGIN, top], width
            top += node["size"][1] + GAP + TITLE + (BADGE if is_ours(node) else 0)
        height = top - TITLE - GAP + MARGIN
        groups.append({"id": len(groups) + 1, "title": title, "bounding": [left, 0, width + 2 * MARGIN, height],
                       "color": "#3f789e", "font_size": 24, "flags": {}})
        left, bottom = left + width + 2 * MARGIN + GAP, max(bottom, height)
    graph["groups"] = groups
    graph["nodes"].append(_note(workflow.note, number + 1, left - GAP))
    graph["last_node_id"] = number + 1
    return graph


def _note(text: str, number: int, width: float) -> dict:
    size = [min(width, 900), NOTE_HEIGHT]
    return {"id": number, "type": "MarkdownNote", "title": "About this workflow", "pos": [0, -NOTE_HEIGHT - GAP],
            "size": size, "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {},
            "widgets_values": [text], "color": "#432", "bgcolor": "#653"}


def stamp(graph: dict, title: str, version: str) -> dict:
    """Say which pack and version each node comes from, and where its model file can be had."""
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        ours = is_ours(node)
        node["properties"] |= {"cnr_id": "gcfg" if ours else "comfy-core", "ver": version if ours else HOST_VERSION}
        models = [{"name": name, "url": SOURCES[name][1], "directory": SOURCES[name][0]}
                  for name in node.get("widgets_values", []) if name in SOURCES]
        if models:
            node["properties"]["models"] = models
    graph["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"gcfg/{title}"))
    graph["extra"] = {}
    return graph


def place_files(base: Path, host: Path) -> None:
    """The host's example image, and an empty file for every model that a workflow names: the frontend offers them."""
    shutil.copytree(host / "input", base / "input")
    for workflow in WORKFLOWS:
        for node in workflow.nodes().values():
            for key, folder in FOLDERS.items():
                if key in node.inputs:
                    path = base / "models" / folder / node.inputs[key]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()


def write(frontend, workflow: Workflow, folder: Path, version: str) -> None:
    """The API file, the graph and its thumbnail of one workflow."""
    api = to_api(workflow)
    _dump(api, folder / "api" / f"{workflow.title}.json")
    graph = stamp(arrange(frontend.from_api(api, workflow.title), workflow), workflow.title, version)
    frontend.load(graph)
    _dump(graph, folder / f"{workflow.title}.json")
    picture = folder / f"{workflow.title}.jpg"
    frontend.screenshot(picture, margin=MARGIN)
    with Image.open(picture) as image:
        image = image.crop(_filled(graph, *image.size))
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(picture, quality=88)


def _filled(graph: dict, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a screenshot of this size that the graph fills, across or down, in the middle."""
    boxes = [group["bounding"] for group in graph["groups"]]
    across = max(left + wide for left, _, wide, _ in boxes)
    down = max(tall for *_, tall in boxes) + NOTE_HEIGHT + GAP + TITLE
    scale = min((width - 2 * MARGIN) / across, (height - 2 * MARGIN) / down, 1)
    x, y = (max(0, round((full - size * scale) / 2) - MARGIN) for full, size in ((width, across), (height, down)))
    return x, y, width - x, height - y


def _dump(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def main(titles: list[str]) -> None:
    version = re.search(r'^version = "(.+)"$', (PACK / "pyproject.toml").read_text(), re.MULTILINE)[1]
    chosen = [workflow for workflow in WORKFLOWS if not titles or workflow.title in titles]
    host = find_host()
    with tempfile.TemporaryDirectory(prefix="gcfg-workflows-") as base:
        place_files(Path(base), host)
        with serve(host, Path(base)) as server, browse(server) as frontend:
            for workflow in chosen:
                write(frontend, workflow, PACK / "workflows", version)
                print(workflow.title)


if __name__ == "__main__":
    main(sys.argv[1:])
