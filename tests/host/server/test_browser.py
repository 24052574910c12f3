"""The browser harness on stock nodes: both renderers open and run a workflow, and missing nodes are named."""

import pytest

from harness import workflow
from harness.server.browser import browse

pytestmark = [pytest.mark.server, pytest.mark.browser]


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
def test_api_workflow_becomes_a_graph_that_runs(server, tmp_path, vue_nodes):
    api = workflow.adapt(workflow.stock(), server.models, size=64, steps=2)
    with browse(server, vue_nodes) as frontend:
        graph = frontend.from_api(api)
        assert sorted(node["type"] for node in graph["nodes"]) == sorted(node["class_type"] for node in api.values())
        frontend.load(graph)
        assert frontend.missing_nodes() == []
        assert {key: node["inputs"] for key, node in frontend.to_api().items()} == {
            key: node["inputs"] for key, node in api.items()
        }
        assert frontend.run()["kind"] == "execution_success"
        picture = frontend.screenshot(tmp_path / "graph.png")
        assert picture.stat().st_size > 20_000
        assert frontend.errors == []


def test_missing_nodes_and_refusals_are_reported(server):
    api = workflow.adapt(workflow.stock(), server.models, size=64, steps=2)
    with browse(server) as frontend:
        graph = frontend.from_api(api)
        graph["nodes"][0]["type"] = "NoSuchNodeAnywhere"
        frontend.load(graph)
        assert frontend.missing_nodes() == ["NoSuchNodeAnywhere"]
