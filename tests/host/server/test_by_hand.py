"""What a person does in the frontend: places nodes, presses Run twice, and looks at what a node shows."""

import copy

import pytest
from PIL import Image

from harness import workflow
from harness.find import PACK
from harness.models.files import write_models
from harness.server.browser import browse
from harness.server.serve import serve

pytestmark = [pytest.mark.server, pytest.mark.browser]


@pytest.fixture(scope="module")
def previewing(host, tmp_path_factory):
    """A server with live previews."""
    folder = tmp_path_factory.mktemp("previewing")
    models = write_models(folder / "models")
    with serve(host, folder, options=("--preview-method", "latent2rgb")) as server:
        server.models = models
        yield server


def shipped(server, title):
    """A shipped workflow on the tiny models, without the values that the frontend may choose itself."""
    path = next((PACK / "workflows" / "api").glob(f"*{title}.json"))
    graph = workflow.adapt(workflow.read(path), server.models, size=64, steps=2)
    workflow.provide_images(graph, server.base / "input")
    return graph


def test_training_and_conversion_placed_by_hand_run_twice(previewing):
    graph = shipped(previewing, "Train a Concept Model")
    graph["90"] = {"class_type": "GCFGConvertToNullText", "inputs": {"model": ["1", 0], "samples": 1, "seed": 0}}
    graph["91"] = {"class_type": "PreviewAny", "inputs": {"source": ["90", 1]}}
    seeds = {key for key, node in graph.items() if node["class_type"] in ("GCFGTrainConceptModel",
                                                                          "GCFGConvertToNullText")}
    with browse(previewing) as frontend:
        frontend.place(graph)
        for _ in range(2):
            ended = frontend.run()
            assert ended["kind"] == "execution_success", ended
            assert {frontend.to_api()[key]["inputs"]["seed"] for key in seeds} == {0}


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
def test_the_scale_grid_shows_the_grid_after_its_previews(previewing, vue_nodes, tmp_path):
    graph = workflow.adapt(workflow.stock(), previewing.models, size=64, steps=2)
    settings = copy.deepcopy(graph["5"]["inputs"])
    settings.pop("cfg")
    graph = {key: graph[key] for key in "1234"}
    graph["5"] = {"class_type": "GCFGScaleGrid", "inputs": settings | {
        "concept_scales": "0", "control_scales": "1, 4, 7", "vae": ["1", 2]}}
    with browse(previewing, vue_nodes) as frontend:
        frontend.place(graph)
        ended = frontend.run()
        assert ended["kind"] == "execution_success", ended
        sizes = loaded(frontend, 5)
        frontend.screenshot(tmp_path / "grid.png")
    saved = sorted((previewing.base / "temp").glob("*.png"), key=lambda path: path.stat().st_mtime)[-1]
    assert set(sizes) == {Image.open(saved).size}


def loaded(frontend, node, tries=40):
    """The sizes of the pictures that a node shows, once they have come; the last preview stays for a moment."""
    for _ in range(tries):
        frontend.page.wait_for_timeout(500)
        shown = frontend.shown(node)
        if shown and all(width and not source.startswith("blob") for width, _, source in shown):
            break
    return [(width, height) for width, height, _ in shown]


def test_sockets_have_colours_of_their_own(previewing):
    with browse(previewing) as frontend:
        frontend.place(workflow.stock())
        colours = frontend.page.evaluate("""() => ['GCFG_GUIDANCE', 'GCFG_SCHEDULE', 'GCFG_SHAPING'].map((type) => [
            LGraphCanvas.link_type_colors[type], app.canvas.default_connection_color_byType[type],
            getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`)])""")
        assert frontend.errors == []
    assert all(len(set(of_one)) == 1 and of_one[0].startswith("#") for of_one in colours)
    assert len({of_one[0] for of_one in colours}) == 3
