#!/usr/bin/env python3
"""Write subgraphs/ from tools/templates/blueprints.py: the real frontend of a ComfyUI makes each subgraph.

    python tools/make_subgraphs.py
"""

import json
import sys
import tempfile
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from make_workflows import place_files, to_api

from harness.find import PACK, find_host
from harness.server.browser import browse
from harness.server.serve import serve
from templates.blueprints import BLUEPRINTS, Blueprint
from templates.parts import Workflow, save

_CONVERT = """async ([api, inside]) => {
    await app.loadApiJson(api, 'blueprint')
    for (const node of app.graph.nodes ?? app.graph._nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name === 'control_after_generate') widget.value = 'randomize'
    app.graph.arrange(80)
    app.graph.convertToSubgraph(new Set(inside.map((id) => app.graph.getNodeById(id))))
    return app.graph.serialize()
}"""


def blueprint(frontend, plan: Blueprint) -> dict:
    """The file of one blueprint: a graph of one node, and what is inside it."""
    nodes = plan.outside | plan.inside
    numbers = {name: number for number, name in enumerate(nodes, start=1)}
    nodes |= {"save": save("blueprint", ("decode", 0))}  # or the subgraph would have no output
    api = to_api(Workflow(plan.title, "", {"all": nodes}))
    graph = frontend.page.evaluate(_CONVERT, [api, [numbers[name] for name in plan.inside]])
    (inner,) = graph["definitions"]["subgraphs"]
    (node,) = (entry for entry in graph["nodes"] if entry["type"] == inner["id"])
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"gcfg/subgraphs/{plan.title}"))
    inner |= {"id": name, "name": plan.title, "description": plan.description, "category": "GCFG"}
    node |= {"id": 1, "type": name, "title": plan.title, "pos": [0, 0], "widgets_values": []}
    shown = _label(inner, node)
    node["properties"] = {"proxyWidgets": [
        ["-1", shown[numbers[name], widget]] if (numbers[name], widget) in shown else [str(numbers[name]), widget]
        for name, widget in plan.shown]}
    for socket in node["inputs"]:
        socket["link"] = None
    for socket in node["outputs"]:
        socket["links"] = []
    return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [inner]}, "extra": {}}


def _label(inner: dict, node: dict) -> dict[tuple[int, str], str]:
    """Name the texts that the frontend has made inputs by their nodes; the inputs by the (node, widget) inside."""
    links = {link["id"]: link for link in inner["links"]}
    inside = {entry["id"]: entry for entry in inner["nodes"]}
    shown = {}
    for own, outer in zip(inner["inputs"], node["inputs"], strict=True):
        goal = links[own["linkIds"][0]]
        target = inside[goal["target_id"]]
        socket = target["inputs"][goal["target_slot"]]
        if "widget" in socket:
            shown[target["id"], socket["widget"]["name"]] = own["name"]
            if socket["widget"]["name"] == "text":
                own["label"] = outer["label"] = target["title"].lower()
    return shown


def main() -> None:
    host, folder = find_host(), PACK / "subgraphs"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gcfg-subgraphs-") as base:
        place_files(Path(base), host)
        with serve(host, Path(base)) as server, browse(server) as frontend:
            for plan in BLUEPRINTS:
                content = blueprint(frontend, plan)
                (folder / f"{plan.title}.json").write_text(json.dumps(content, indent=1) + "\n")
                print(plan.title)


if __name__ == "__main__":
    main()
