"""Where the nodes of a workflow lie: columns in groups, in one row or two, and wires that pass above them.

A wire between neighbouring columns runs through the gap between them. One that goes further climbs out of its column's
gap into a lane above the row, a lane for each output, and comes down in the gap before its goal.
"""

from collections.abc import Iterator

from .parts import Workflow

WIDTHS = {"CheckpointLoaderSimple": 340, "UNETLoader": 340, "ControlNetLoader": 340, "LoraLoaderModelOnly": 340,
          "GCFGLoadConceptModel": 340, "CLIPTextEncode": 340, "GCFGInspector": 460, "GCFGKSampler": 300,
          "KSampler": 300, "GCFGScaleGrid": 420, "GCFGCompare": 460, "GCFGTextToGuidances": 400, "SaveImage": 340,
          "PreviewAny": 320, "GCFGTrainConceptModel": 360, "CLIPLoader": 340, "DualCLIPLoader": 340, "VAELoader": 340,
          "SaveAnimatedWEBP": 340}
HEIGHTS = {"CLIPTextEncode": 110, "GCFGInspector": 560, "PreviewAny": 190, "SaveImage": 400, "PreviewImage": 360,
           "LoadImage": 330, "GCFGScaleGrid": 780, "GCFGCompare": 660, "GCFGTextToGuidances": 180,
           "GCFGTrainConceptModel": 1150, "SaveAnimatedWEBP": 440}
TITLE, GAP, MARGIN, HEADER, LANE = 30, 60, 20, 50, 16
BADGE = 45  # the Vue renderer draws the nodes of a pack so much taller than the classic one
NOTE_HEIGHT = 105


def is_ours(node: dict) -> bool:
    """Whether a node of a graph is one of this pack."""
    return node["type"].startswith("GCFG")


def arrange(graph: dict, workflow: Workflow) -> dict:
    """Place the nodes in columns under a note, each column in a group; lead the wires around them."""
    by_id = {str(node["id"]): node for node in graph["nodes"]}
    columns, number = [], 0
    for title, column in workflow.columns.items():
        members = [by_id[str(number + k)] for k in range(1, len(column) + 1)]
        number += len(column)
        columns.append((title, members))
    rows = [[]]
    for title, members in columns:
        if title == workflow.below:
            rows.append([])
        rows[-1].append((title, members))
    place = {node["id"]: (r, c) for r, row in enumerate(rows) for c, (_, members) in enumerate(row) for node in members}
    lanes = [_lanes(graph["links"], place, r) for r in range(len(rows))]
    graph["groups"], edges, top, width = [], [], 0.0, 0.0
    for row, row_lanes in zip(rows, lanes, strict=True):
        top += len(row_lanes) * LANE + GAP / 2
        row_edges, bottom = _row(row, top, graph["groups"])
        edges.append((top, row_edges))
        top, width = bottom + GAP / 2, max(width, row_edges[-1][1])
    graph["extra"] = _wires(graph["links"], place, lanes, edges)
    graph["nodes"].append(_note(workflow.note, number + 1, width))
    graph["last_node_id"] = number + 1
    return graph


def _row(row: list, top: float, groups: list[dict]) -> tuple[list[tuple[float, float]], float]:
    """Place a row of columns; the left and right edges of its groups, and the bottom of the longest."""
    left, bottom, edges = 0.0, 0.0, []
    for title, members in row:
        for node in members:
            node["size"] = [max(node["size"][0], WIDTHS.get(node["type"], 0)),
                            max(node["size"][1], HEIGHTS.get(node["type"], 0))]
        width, y = max(node["size"][0] for node in members), top + HEADER + TITLE
        for node in members:
            node["pos"], node["size"][0] = [left + MARGIN, y], width
            y += node["size"][1] + TITLE + MARGIN + (BADGE if is_ours(node) else MARGIN)
        groups.append({"id": len(groups) + 1, "title": title, "color": "#3f789e", "font_size": 24, "flags": {},
                       "bounding": [left, top, width + 2 * MARGIN, y - TITLE - top]})
        edges.append((left, left + width + 2 * MARGIN))
        left, bottom = left + width + 2 * MARGIN + GAP, max(bottom, y - TITLE)
    return edges, bottom


def _far(links: list, place: dict) -> Iterator[list]:
    """The wires that do not end in the next column."""
    for link in links:
        (row, column), (other_row, other_column) = place[link[1]], place[link[3]]
        if row != other_row or other_column - column > 1:
            yield link


def _lanes(links: list, place: dict, row: int) -> list[tuple]:
    """The outputs (node, slot) that have a lane above a row, from the lowest to the highest."""
    outputs = {(link[1], link[2]): place[link[1]] for link in _far(links, place) if place[link[3]][0] == row}
    return sorted(outputs, key=lambda output: (outputs[output], output))


def _wires(links: list, place: dict, lanes: list, edges: list) -> dict:
    """The graph's reroutes and which wire ends at which, in the frontend's form."""
    reroutes, ends = [], []

    def reroute(x: float, y: float, parent: int | None = None) -> dict:
        entry = {"id": len(reroutes) + 1, "pos": [x, y], "linkIds": []} | ({"parentId": parent} if parent else {})
        reroutes.append(entry)
        return entry

    climbs: dict[tuple, dict] = {}
    for link in _far(links, place):
        output, (row, column), (target_row, target) = (link[1], link[2]), place[link[1]], place[link[3]]
        top, own = edges[target_row]
        lane = lanes[target_row].index(output)
        y, shift = top - GAP / 4 - lane * LANE, 6.0 * (lane % 7)
        key = (output, target_row)
        if key not in climbs:
            climbs[key] = reroute(edges[row][1][column][1] + 10 + shift, y)
        last = climbs[key]
        last["linkIds"].append(link[0])
        last = reroute(own[target][0] - 16 - shift / 2, y, last["id"])
        last["linkIds"].append(link[0])
        ends.append({"id": link[0], "parentId": last["id"]})
    return {"reroutes": reroutes, "linkExtensions": ends} if reroutes else {}


def _note(text: str, number: int, width: float) -> dict:
    return {"id": number, "type": "MarkdownNote", "title": "About this workflow", "pos": [0, -NOTE_HEIGHT - GAP / 2],
            "size": [min(width, 900), NOTE_HEIGHT], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
            "properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#653"}
