"""The subgraph blueprints: the server offers them, and the frontend places and runs them."""

import json

import pytest

from harness.find import PACK
from harness.server.browser import browse
from harness.server.serve import ServerError

pytestmark = [pytest.mark.server, pytest.mark.browser]

TITLES = sorted(path.stem for path in (PACK / "subgraphs").glob("*.json"))

_PLACE = """async ([blueprint, outside]) => {
    await app.loadGraphData(blueprint, true, true, null)
    const node = app.graph.nodes[0]
    const [base, concept, size, save] = outside.slice(0, 4).map(([type, values]) => {
        const made = LiteGraph.createNode(type)
        app.graph.add(made)
        for (const widget of made.widgets ?? []) if (widget.name in values) widget.value = values[widget.name]
        return made
    })
    const sources = { CLIP: [base, 1], VAE: [base, 2], LATENT: [size, 0] }
    for (const [slot, input] of node.inputs.entries()) {
        const other = ['concept_model', 'model_2'].includes(input.name)
        const [source, output] = input.type === 'MODEL' ? [other ? concept : base, 0] : sources[input.type] ?? []
        if (source) source.connect(output, node, slot)
    }
    node.connect(0, save, 0)
    for (const inner of [...node.subgraph.nodes, node])
        for (const widget of inner.widgets ?? []) {
            const name = widget.name.replace(/_\\d+$/, '') // of two of a name the second gets a number
            if (name in outside[4][1]) widget.value = outside[4][1][name]
        }
    return { inside: node.subgraph.nodes.length, widgets: (node.widgets ?? []).map((widget) => widget.name),
             open: node.inputs.filter((i) => i.link == null && !i.widget).map((i) => i.name) }
}"""


def outside(server):
    """What a blueprint is connected to: base, concept, size, a node that saves; and values for the nodes inside."""
    return [
        ["CheckpointLoaderSimple", {"ckpt_name": server.models.checkpoint}],
        ["UNETLoader", {"unet_name": server.models.unet}],
        ["EmptyLatentImage", {"width": 64, "height": 64}],
        ["SaveImage", {"filename_prefix": "blueprint"}],
        ["", {"lora_name": server.models.lora, "steps": 2}],
    ]


def test_there_are_three():
    assert TITLES == ["Class-guided Concept", "Concept and Control", "Two LoRAs"]


def test_the_server_offers_them(server):
    try:
        offered = server.request("/api/global_subgraphs").values()
    except ServerError as error:
        pytest.skip(f"this ComfyUI offers no blueprints of packs: {error}")
    assert {entry["name"] for entry in offered if "gcfg" in entry["info"]["node_pack"]} == set(TITLES)


def test_the_frontend_opens_and_runs_them(server):
    with browse(server) as frontend:
        for title in TITLES:
            content = json.loads((PACK / "subgraphs" / f"{title}.json").read_text())
            placed = frontend.page.evaluate(_PLACE, [content, outside(server)])
            assert placed["open"] == [] and frontend.missing_nodes() == []
            assert len(placed["widgets"]) >= len(content["nodes"][0]["properties"]["proxyWidgets"]), placed
            ended = frontend.run(300)
            assert ended["kind"] == "execution_success", (title, ended)
        assert frontend.errors == []
