"""What thumbnails are made of: panels that name nodes and inputs of their workflow, files that are there, cards."""

import sys

import pytest
from PIL import Image

from harness.find import PACK
from harness.models import pictures

sys.path.insert(0, str(PACK / "tools"))
try:
    from templates import WORKFLOWS
    from templates.shown import SHOWN, Card
    from templates.thumbnail import SIZE, STRIP, made, numbers_of, reduced, shown_of, thumbnail, to_api
finally:
    sys.path.remove(str(PACK / "tools"))

TITLES = {workflow.title[3:]: workflow for workflow in WORKFLOWS}
DESCRIBED = [title for title in TITLES if title in SHOWN]


@pytest.mark.parametrize("title", DESCRIBED)
def test_panels_name_what_their_workflow_has(title):
    shown, nodes = SHOWN[title], TITLES[title].nodes()
    panels = () if isinstance(shown, Card) else shown.panels
    for changes in [getattr(shown, "common", {}), *(panel.changes for panel in panels)]:
        for name, inputs in changes.items():
            assert inputs.keys() <= nodes[name].inputs.keys()
    for saved in filter(None, [getattr(shown, "save", None), *(panel.save for panel in panels)]):
        assert saved[0] in nodes
    for panel in panels:
        if panel.file:
            assert min(made(panel, TITLES[title], shown, None).size) >= 60


def test_a_reduced_workflow_saves_one_output_and_holds_what_that_needs():
    workflow = TITLES["Image to Image Translation"]
    numbers = numbers_of(workflow)
    graph = reduced(to_api(workflow), [numbers["scale"], 0], {})
    assert sorted(node["class_type"] for node in graph.values()) == ["ImageScale", "LoadImage", "SaveImage"]
    whole = reduced(to_api(workflow), [numbers["decode"], 0], {numbers["control"]: {"text": "fox"}},
                    {numbers["sampler"]: {"guidance": None, "control_scale": 0.5}})
    assert whole[numbers["sampler"]]["inputs"]["control_scale"] == 0.5
    assert whole[numbers["control"]]["inputs"]["text"] == "fox"
    assert whole[numbers["base"]]["inputs"]["ckpt_name"] == pictures.names().checkpoint


@pytest.mark.parametrize("title", ["Wan and a LoRA as the Concept", "Two Subjects"])
def test_a_thumbnail_is_drawn_above_its_graph(title):
    """A card, and one of pictures that lie in the repository: neither needs a server."""
    graph = Image.new("RGB", (400, 100), "#ff0000")
    picture = thumbnail(graph, TITLES[title], lambda graph: pytest.fail("nothing is to be run"))
    assert picture.size == SIZE
    assert picture.getpixel((240, SIZE[1] - STRIP // 2)) == (255, 0, 0)
    assert len(set(picture.crop((0, 0, SIZE[0], SIZE[1] - STRIP)).getdata())) > 20


def test_a_workflow_that_nobody_has_described_gets_its_title():
    assert shown_of(WORKFLOWS[0]._replace(title="99 Something New")) == Card("Something New")
