"""Thumbnails of the shipped workflows: what each makes on the small models of benchmarks/pictures, above its graph."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from harness import workflow as workflows
from harness.find import PACK
from harness.models import pictures
from harness.models.files import ModelFiles
from harness.server.serve import Server

from .parts import Node, Workflow
from .shown import SHOWN, Card, Panel, Shown

SIZE = (480, 480)
GROUND, INK, ACCENT = "#1c1c1f", "#f4f4f5", "#f5b82e"
STRIP, CAPTION, GAP = 118, 26, 8
"""Heights of the graph at the bottom and of a line of text, and the room between parts."""


def to_api(workflow: Workflow) -> dict:
    """The workflow in API format, its nodes numbered from left to right."""
    nodes, numbers = workflow.nodes(), numbers_of(workflow)

    def link(value):
        return [numbers[value[0]], value[1]] if isinstance(value, tuple) else value

    def entry(node: Node) -> dict:
        inputs = {key: link(value) for key, value in node.inputs.items()}
        return {"class_type": node.kind, "inputs": inputs, **({"_meta": {"title": node.title}} if node.title else {})}

    return {numbers[name]: entry(node) for name, node in nodes.items()}


def numbers_of(workflow: Workflow) -> dict[str, str]:
    """The number of each node by its name."""
    return {name: str(number) for number, name in enumerate(workflow.nodes(), start=1)}


def shown_of(workflow: Workflow) -> Shown | Card:
    """What the thumbnail of a workflow shows; of one that nobody has described its title."""
    title = workflow.title[3:]
    return SHOWN.get(title) or Card(title)


def thumbnail(graph: Image.Image, workflow: Workflow, run: Callable[[dict], Image.Image] | None) -> Image.Image:
    """The thumbnail (480 x 480) of a workflow.

    Args:
        graph: a picture of its graph.
        run: makes the picture of a workflow in API format; without it there are cards only.
    """
    shown = shown_of(workflow)
    sheet = Image.new("RGB", SIZE, GROUND)
    if isinstance(shown, Card) or run is None:
        shown = shown if isinstance(shown, Card) else Card(workflow.title[3:])
        pictured = made(Panel("", save=shown.save), workflow, Shown(()), run) if shown.save and run else None
        _card(sheet, shown, pictured)
    else:
        _panels(sheet, [(panel, made(panel, workflow, shown, run)) for panel in shown.panels])
    small = ImageOps.contain(graph, (SIZE[0] - 2 * GAP, STRIP - GAP), Image.Resampling.LANCZOS)
    sheet.paste(small, ((SIZE[0] - small.width) // 2, SIZE[1] - STRIP + (STRIP - GAP - small.height) // 2))
    return sheet


def made(panel: Panel, workflow: Workflow, shown: Shown, run: Callable[[dict], Image.Image]) -> Image.Image:
    """The picture of a panel: from its file, or what the workflow with its changes makes."""
    if panel.file:
        with Image.open(PACK / panel.file) as picture:
            return picture.convert("RGB").crop(panel.box or (0, 0, *picture.size))
    api, numbers = to_api(workflow), numbers_of(workflow)
    saved = panel.save or next(node.inputs["images"] for node in workflow.nodes().values() if node.kind == "SaveImage")
    changes = ({numbers[name]: inputs for name, inputs in change.items()} for change in (shown.common, panel.changes))
    return run(reduced(api, [numbers[saved[0]], saved[1]], *changes))


def reduced(api: dict, saved: list, *changes: dict[str, dict]) -> dict:
    """A workflow that saves one output of a node and shows nothing else, on the small models, with changed inputs.

    Args:
        changes: inputs by node, the later ones over the earlier; None takes an input away.
    """
    names = pictures.names()
    graph = workflows.adapt(api, names, pictures.SIZE, pictures.STEPS)
    pictures.reword(graph)
    for change in changes:
        for number, inputs in change.items():
            graph[number]["inputs"] |= inputs
    for node in graph.values():
        node["inputs"] = {key: value for key, value in node["inputs"].items() if value is not None}
    needed, waiting = {}, [saved[0]]
    while waiting:
        number = waiting.pop()
        needed[number] = graph[number]
        waiting += [value[0] for value in graph[number]["inputs"].values()
                    if isinstance(value, list) and value[0] not in needed]
    return needed | {"0": {"class_type": "SaveImage", "inputs": {"images": saved, "filename_prefix": "thumbnail"}}}


def runner(server: Server) -> Callable[[dict], Image.Image]:
    """Runs workflows on a server; the picture of each."""
    def run(graph: dict) -> Image.Image:
        graph = copy.deepcopy(graph)
        for node in graph.values():
            if node["class_type"].startswith("LoadImage"):  # the graph below goes on showing the host's example
                node["inputs"]["image"] = f"small/{node['inputs']['image']}"
        workflows.provide_images(graph, server.base / "input", pictures.SIZE, pictures.examples())
        entry = server.queue(graph, timeout=600)
        return Image.open(io.BytesIO(server.image(entry["outputs"]["0"]["images"][-1]))).convert("RGB")

    return run


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _panels(sheet: Image.Image, panels: list[tuple[Panel, Image.Image]]) -> None:
    """The last panel large; those before it, what it is made of, in a column to its left."""
    *parts, (last, result) = panels
    height = SIZE[1] - STRIP - 2 * GAP
    side = height - CAPTION
    if not parts:
        _place(sheet, result, last.caption, (GAP, GAP, SIZE[0] - 2 * GAP, side))
        return
    each = (height - GAP * (len(parts) - 1)) // len(parts) - CAPTION
    width = min(each, SIZE[0] - side - 3 * GAP + 20)
    for k, (panel, picture) in enumerate(parts):
        y = GAP + k * (each + CAPTION + GAP)
        _place(sheet, picture, panel.caption, (GAP, y, width, each))
    _place(sheet, result, last.caption, (width + 2 * GAP, GAP, SIZE[0] - width - 3 * GAP, side), ACCENT)


def _place(sheet: Image.Image, picture: Image.Image, caption: str, box: tuple[int, int, int, int],
           ink: str = INK) -> None:
    """A picture in a box (x, y, width, height), as large as it fits, and what it is in a line below."""
    x, y, width, height = box
    how = Image.Resampling.LANCZOS if max(picture.size) > width else Image.Resampling.BICUBIC
    large = ImageOps.contain(picture, (width, height), how)
    top = y + (height - large.height) // 2
    sheet.paste(large, (x + (width - large.width) // 2, top))
    _line(sheet, caption, (x + width / 2, top + large.height + CAPTION / 2), 19, ink, width + GAP)


def _line(sheet: Image.Image, text: str, middle: tuple[float, float], size: int, ink: str, width: float) -> None:
    """A line of text around a point, smaller where it would be wider than ``width``."""
    while size > 10 and _font(size).getlength(text) > width:
        size -= 1
    ImageDraw.Draw(sheet).text(middle, text, ink, _font(size), anchor="mm")


def _card(sheet: Image.Image, card: Card, picture: Image.Image | None) -> None:
    """A title that can be read from afar, a line below it, and a picture at its side."""
    height = SIZE[1] - STRIP
    left = 0
    if picture is not None:
        left = 190
        _place(sheet, picture, card.caption, (GAP, (height - left) // 2, left - GAP, left - GAP))
    middle = left + (SIZE[0] - left) / 2
    lines = card.title.split("\n")
    room = SIZE[0] - left - 4 * GAP
    size = min(76, *(int(76 * room / _font(76).getlength(line)) for line in lines))
    top = height / 2 - size * 0.6 * len(lines)
    for k, line in enumerate(lines):
        _line(sheet, line, (middle, top + size * (0.6 + 1.2 * k)), size, INK, room)
    _line(sheet, card.subtitle, (middle, top + size * 1.2 * len(lines) + 24), 24, ACCENT, room)


def models_are_here() -> bool:
    """True if the small models that draw lie in the repository."""
    return pictures.are_here()


def write_models(folder: Path) -> ModelFiles:
    """Write the small models into the models folder of a server."""
    return pictures.write(folder)
