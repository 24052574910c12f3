"""What a shipped workflow file carries: twins, thumbnails, stamps, a note, model sources. Needs no host."""

import json
import re
import sys

import pytest
from PIL import Image

from harness.find import PACK
from harness.packs import needed, pack_of

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


def note_of(title):
    (note,) = (node for node in graph(title)["nodes"] if node["type"] == "MarkdownNote")
    return note["widgets_values"][0]


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
        ours, other = node["type"].startswith("GCFG"), pack_of(node["type"])
        assert node["properties"]["cnr_id"] == ("gcfg" if ours else other.cnr_id if other else "comfy-core")
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])
        assert not ours or node["properties"]["ver"] == VERSION


@pytest.mark.parametrize("title", TITLES)
def test_other_packs_are_named_in_the_note(title):
    """And what else a workflow holds is the host's own or ours, which tests/host/server shows by running it."""
    for pack in needed(node["type"] for node in graph(title)["nodes"]):
        assert f"Needs the pack *{pack.folder}*" in note_of(title)


@pytest.mark.parametrize("title", TITLES)
def test_named_model_files_have_a_source_or_are_the_users_own(title, maker):
    for node in graph(title)["nodes"]:
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        for name in node.get("widgets_values", []):
            if isinstance(name, str) and name.endswith(".safetensors"):
                assert name in models or "faces" in name or name.startswith("my_")
        for model in models.values():
            renamed = f"saved as *{model['name']}*" in note_of(title)
            assert model["url"].startswith("https://") and (model["url"].endswith(model["name"]) or renamed)
            assert model["directory"] in maker.FOLDERS.values()


@pytest.mark.parametrize("title", TITLES)
def test_note_says_in_three_lines_what_it_does_and_what_to_load(title):
    lines = note_of(title).split("\n\n")
    assert len(lines) == 3
    assert "Load" in lines[1]


@pytest.mark.parametrize("title", TITLES)
def test_groups_hold_their_nodes(title):
    groups = [group["bounding"] for group in graph(title)["groups"]]
    for node in graph(title)["nodes"]:
        if node["type"] != "MarkdownNote":
            (x, y), (w, h) = node["pos"], node["size"]
            badge = 45 if node["type"].startswith("GCFG") else 0
            holders = [g for g in groups if g[0] < x and g[1] < y - 30 and x + w < g[0] + g[2]
                       and y + h + badge < g[1] + g[3]]
            assert len(holders) == 1, node["type"]


@pytest.mark.parametrize("title", TITLES)
def test_no_wire_passes_behind_a_node(title):
    """A wire goes from its node to the next column, or by reroutes in the gaps and above the rows."""
    content = graph(title)
    nodes = {node["id"]: node for node in content["nodes"]}
    boxes = [(*node["pos"], *node["size"]) for node in nodes.values() if node["type"] != "MarkdownNote"]
    reroutes = {entry["id"]: entry for entry in content["extra"].get("reroutes", [])}
    ends = {entry["id"]: entry["parentId"] for entry in content["extra"].get("linkExtensions", [])}
    for number, source, _, target, *_ in content["links"]:
        corners, last = [], reroutes.get(ends.get(number))
        while last:
            corners.insert(0, last["pos"])
            assert number in last["linkIds"]
            last = reroutes.get(last.get("parentId"))
        begin = [nodes[source]["pos"][0] + nodes[source]["size"][0], nodes[source]["pos"][1]]
        stops = [begin, *corners, nodes[target]["pos"]]
        for (x1, y1), (x2, y2) in zip(stops, stops[1:], strict=False):
            left, right = sorted((x1, x2))
            for x, y, w, h in boxes:
                beside = max(y1, y2) < y - 30 or min(y1, y2) > y + h
                assert beside or not (left < x and x + w < right), (title, number)


def test_titles_are_numbered_and_all_in_the_readme():
    readme = (PACK / "README.md").read_text()
    assert [int(title[:2]) for title in TITLES] == list(range(1, len(TITLES) + 1))
    assert [title for title in TITLES if f"| {title} |" not in readme] == []


def test_apps_name_widgets_and_nodes_that_are_there():
    apps = [title for title in TITLES if "App - " in title]
    assert len(apps) == 3
    for title in apps:
        api, extra = json.loads((FOLDER / "api" / f"{title}.json").read_text()), graph(title)["extra"]
        assert extra["linearMode"] is True
        for node, widget in extra["linearData"]["inputs"]:
            assert not isinstance(api[node]["inputs"][widget], list)
        assert {api[node]["class_type"] for node in extra["linearData"]["outputs"]} == {"SaveImage"}


@pytest.mark.parametrize("title", TITLES)
def test_nodes_do_not_overlap_and_read_left_to_right(title):
    nodes = {node["id"]: node for node in graph(title)["nodes"]}
    boxes = [(*node["pos"], *node["size"], 45 if node["type"].startswith("GCFG") else 0) for node in nodes.values()]
    for k, (x, y, w, h, badge) in enumerate(boxes):
        for x2, y2, w2, h2, badge2 in boxes[k + 1:]:
            beside = x + w <= x2 or x2 + w2 <= x
            assert beside or y + h + badge <= y2 - 30 or y2 + h2 + badge2 <= y - 30
    for _, source, _, target, *_ in graph(title)["links"]:
        (x, y), (x2, y2) = nodes[source]["pos"], nodes[target]["pos"]
        assert x <= x2 or y < y2 - 300  # or in the second row


@pytest.mark.parametrize("path", sorted([*FOLDER.glob("*.json"), *(PACK / "subgraphs").glob("*.json")]),
                         ids=lambda path: path.stem)
def test_values_by_name_are_those_by_place(path):
    """The frontend writes both, and newer ones read the names."""
    content = json.loads(path.read_text())
    for part in [content, *((content.get("definitions") or {}).get("subgraphs") or [])]:
        for node in part["nodes"]:
            values, named = node.get("widgets_values"), node.get("widgets_values_named")
            if values and named:
                assert list(named.values()) == list(values), node["type"]
