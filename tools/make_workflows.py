#!/usr/bin/env python3
"""Write workflows/ from tools/templates: API files, graphs for the frontend, and their thumbnails.

    python tools/make_workflows.py [title ...]

The real frontend of a ComfyUI (found as the tests find it) makes each graph out of its API file, and its server the
pictures of the thumbnails on the small models of benchmarks/pictures (templates/shown.py).
Workflows with nodes of other packs are written where ``GCFG_OTHER_PACKS`` names a folder with checkouts of these.
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

from PIL import Image

from harness.find import PACK, find_host
from harness.packs import PACKS, checkout, needed, pack_of
from harness.server.browser import browse
from harness.server.serve import serve
from harness.workflow import provide_images
from templates import WORKFLOWS
from templates.layout import MARGIN, TITLE, arrange, is_ours
from templates.parts import SOURCES, Workflow
from templates.thumbnail import models_are_here, numbers_of, runner, thumbnail, to_api, write_models

HOST_VERSION = "0.3.64"  # the oldest ComfyUI that the workflows run on
FOLDERS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models", "lora_name": "loras",
           "control_net_name": "controlnet", "concept_name": "concept_models", "clip_name": "clip_vision",
           "clip_file": "text_encoders", "photomaker_model_name": "photomaker",
           "clip_name1": "text_encoders", "clip_name2": "text_encoders", "vae_name": "vae",
           "ipadapter_file": "ipadapter", "model_name": "animatediff_models"}


def stamp(graph: dict, workflow: Workflow, version: str) -> dict:
    """Say which pack and version each node comes from, where its model file can be had, and what an app shows."""
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        node["properties"] |= dict(zip(("cnr_id", "ver"), origin(node, version), strict=True))
        models = [{"name": name, "url": SOURCES[name][1], "directory": directory(name, node["type"])}
                  for name in node.get("widgets_values", []) if name in SOURCES]
        if models:
            node["properties"]["models"] = models
    graph["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"gcfg/{workflow.title}"))
    if workflow.app:
        numbers = numbers_of(workflow)
        graph["extra"] |= {"linearMode": True, "linearData": {
            "inputs": [[numbers[node], widget] for node, widget in workflow.app.inputs],
            "outputs": [numbers[node] for node in workflow.app.outputs]}}
    return graph


def origin(node: dict, version: str) -> tuple[str, str]:
    """The pack that a node of a graph is of, by its id in the registry, and that pack's version."""
    if is_ours(node):
        return "gcfg", version
    other = pack_of(node["type"])
    return (other.cnr_id, other.version) if other else ("comfy-core", HOST_VERSION)


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


def write(frontend, workflow: Workflow, folder: Path, version: str, run) -> None:
    """The API file, the graph and its thumbnail of one workflow.

    Args:
        run: makes the pictures of thumbnails (``thumbnail.runner``), or None.
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
    thumbnail(image, workflow, run).save(picture, quality=88)


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
    titles, known = parser.parse_args().titles, {workflow.title for workflow in WORKFLOWS}
    if unknown := sorted({*titles} - known):
        parser.error(f"there is no workflow {', '.join(map(repr, unknown))}; titles begin with their number.")
    version = re.search(r'^version = "(.+)"$', (PACK / "pyproject.toml").read_text(), re.MULTILINE)[1]
    chosen = [workflow for workflow in WORKFLOWS if not titles or workflow.title in titles]
    folders = {pack: folder for pack in PACKS if (folder := checkout(pack))}
    for workflow in [workflow for workflow in chosen if not {*needed(workflow.kinds())} <= {*folders}]:
        chosen.remove(workflow)
        print(f"{workflow.title}: left as it is, GCFG_OTHER_PACKS names no folder with its pack")
    host = find_host()
    with tempfile.TemporaryDirectory(prefix="gcfg-workflows-") as base:
        place_files(Path(base), host)
        if models_are_here():
            write_models(Path(base) / "models")
        with serve(host, Path(base), packs=[*folders.values()]) as server, browse(server) as frontend:
            for workflow in chosen:
                write(frontend, workflow, PACK / "workflows", version, runner(server) if models_are_here() else None)
                print(workflow.title, flush=True)


if __name__ == "__main__":
    main()
