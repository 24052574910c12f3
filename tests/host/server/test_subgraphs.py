"""The subgraph blueprints: the server offers them, and the frontend places and runs them."""

import json

import pytest

from harness.find import PACK
from harness.server.browser import browse

pytestmark = [pytest.mark.server, pytest.mark.browser]

TITLES = sorted(path.stem for path in (PACK / "subgraphs").glob("*.json"))

_PLACE = """async ([title, api]) => {
    await app.loadApiJson(api, 'outside')
    const node = LiteGraph.createNode(`SubgraphBlueprint.${title}`)
    app.graph.add(node)
    const sources = { MODEL: [[1, 0], [2, 0]], CLIP: [[1, 1]], VAE: [[1, 2]], LATENT: [[3, 0]] }
    for (const [slot, input] of node.inputs.entries()) {
        if (!(input.type in sources)) continue
        const which = input.name.includes('model_2') || input.name.includes('concept') ? 1 : 0
        const [from, output] = sources[input.type][which] ?? sources[input.type][0]
        app.graph.getNodeById(from).connect(output, node, slot)
    }
    node.connect(0, app.graph.getNodeById(4), 0)
    return { widgets: (node.widgets ?? []).map((widget) => widget.name),
             open: node.inputs.filter((i) => i.type in sources && i.link == null).map((i) => i.name) }
}"""


def outside(server):
    """What a blueprint is connected to: base, concept, size, and a node that saves."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.models.checkpoint}},
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": server.models.unet, "weight_dtype": "default"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "SaveImage", "inputs": {"filename_prefix": "blueprint"}},
    }


def test_there_are_three():
    assert TITLES == ["Class-guided Concept", "Concept and Control", "Two LoRAs"]


def test_the_server_offers_them(server):
    offered = server.request("/api/global_subgraphs").values()
    assert {entry["name"] for entry in offered if "gcfg" in entry["info"]["node_pack"]} == set(TITLES)


def test_the_frontend_places_and_runs_them(server):
    for title in TITLES:
        with browse(server) as frontend:
            frontend.page.wait_for_function(
                f"() => 'SubgraphBlueprint.{title}' in LiteGraph.registered_node_types", timeout=120_000)
            placed = frontend.page.evaluate(_PLACE, [title, outside(server)])
            assert placed["open"] == []
            shown = json.loads((PACK / "subgraphs" / f"{title}.json").read_text())["nodes"][0]["properties"]
            assert len(placed["widgets"]) >= len(shown["proxyWidgets"]), placed
            frontend.page.evaluate("""(lora) => {
                for (const graph of [app.graph, ...app.graph.subgraphs.values()])
                    for (const node of graph.nodes)
                        for (const widget of node.widgets ?? []) {
                            if (widget.name === 'lora_name') widget.value = lora
                            if (widget.name === 'steps') widget.value = 2
                        }
            }""", server.models.lora)
            ended = frontend.run()
            assert ended["kind"] == "execution_success", (title, ended)
            assert frontend.errors == []
