"""What the frontend can translate of the pack's nodes, in the form of a pack's ``locales/<language>/nodeDefs.json``."""

from .object_info import GROWING
from .serve import Server


def english(server: Server) -> dict[str, dict]:
    """Titles, descriptions and tooltips of the pack's nodes by node, as a server states them."""
    info = server.request("/object_info", timeout=120)
    return {name: _node(node) for name, node in sorted(info.items()) if name.startswith("GCFG")}


def _node(node: dict) -> dict:
    inputs = {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in _inputs(node["input"])}
    outputs = {str(k): {"name": name, "tooltip": tooltip} for k, (name, tooltip)
               in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))}
    return {"display_name": node["display_name"], "description": node["description"], "inputs": inputs,
            "outputs": outputs}


def _inputs(groups: dict, prefix: str = ""):
    """Every input by its full name; of one that grows, those of its longest form."""
    for group in ("required", "optional"):
        for name, spec in groups.get(group, {}).items():
            yield prefix + name, spec
            if spec[0] == GROWING:
                yield from _inputs(spec[1]["options"][-1]["inputs"], f"{prefix}{name}.")
