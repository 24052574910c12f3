"""What a shipped workflow file carries: twins, thumbnails, stamps, a note, model sources. Needs no host."""

import json
import re
import sys

import pytest
from PIL import Image

from harness.find import PACK

FOLDER = PACK / "workflows"
TITLES = sorted(path.stem for path in FOLDER.glob("*.json"))
VERSION = re.search(r'^version = "(.+)"$', (PACK / "pyproject.toml").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def maker():
    """tools/make_workflows.py."""
    sys.path.insert(0, str(PACK / "tools"))
    try:
        import make_workflows
    finally:
        sys.path.remove(str(PACK / "tools"))
    return make_workflows


def graph(title):
    return json.loads((FOLDER / f"{title}.json").read_text())


def test_files_are_those_of_the_generator(maker):
    assert TITLES == sorted(workflow.title for workflow in maker.WORKFLOWS)
    for workflow in maker.WORKFLOWS:
        assert json.loads((FOLDER / "api" / f"{workflow.title}.json").read_text()) == maker.to_api(workflow)
    assert sorted(path.stem for path in (FOLDER / "api").glob("*")) == TITLES
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == TITLES


@pytest.mark.parametrize("title", TITLES)
def test_thumbnail(title):
    path = FOLDER / f"{title}.jpg"
    assert Image.open(path).width == 480
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("title", TITLES)
def test_stamps(title):
    for node in graph(title)["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        ours = node["type"].startswith("GCFG")
        assert node["properties"]["cnr_id"] == ("gcfg" if ours else "comfy-core")
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])
        assert not ours or node["properties"]["ver"] == VERSION


@pytest.mark.parametrize("title", TITLES)
def test_named_model_files_have_a_source_or_are_the_users_own(title, maker):
    for node in graph(title)["nodes"]:
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        for name in node.get("widgets_values", []):
            if isinstance(name, str) and name.endswith(".safetensors"):
                assert name in models or "faces" in name or name.startswith("my_")
        for model in models.values():
            assert model["url"].startswith("https://") and model["url"].endswith(model["name"])
            assert model["directory"] in maker.FOLDERS.values()


@pytest.mark.parametrize("title", TITLES)
def test_note_says_in_three_lines_what_it_does_and_what_to_load(title):
    (note,) = (node for node in graph(title)["nodes"] if node["type"] == "MarkdownNote")
    lines = note["widgets_values"][0].split("\n\n")
    assert len(lines) == 3
    assert "Load" in lines[1]


@pytest.mark.parametrize("title", TITLES)
def test_nodes_do_not_overlap_and_read_left_to_right(title):
    nodes = {node["id"]: node for node in graph(title)["nodes"]}
    boxes = [(*node["pos"], *node["size"], 45 if node["type"].startswith("GCFG") else 0) for node in nodes.values()]
    for k, (x, y, w, h, badge) in enumerate(boxes):
        for x2, y2, w2, h2, badge2 in boxes[k + 1:]:
            beside = x + w <= x2 or x2 + w2 <= x
            assert beside or y + h + badge <= y2 - 30 or y2 + h2 + badge2 <= y - 30
    for _, source, _, target, *_ in graph(title)["links"]:
        assert nodes[source]["pos"][0] <= nodes[target]["pos"][0]
