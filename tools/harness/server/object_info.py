"""What a workflow file relies on: ids, inputs and outputs of the pack's nodes, as a server states them."""

from .serve import Server

GROWING = "COMFY_DYNAMICCOMBO_V3"
_LIMITS = ("default", "min", "max")
_LISTS = {"sampler_name": "samplers of the host", "scheduler": "schedulers of the host", "concept_name": "files",
          "clip_file": "files"}


def snapshot(server: Server) -> dict[str, dict]:
    """The pack's nodes by id, alike on every host: lists of the host or of its files go by a name."""
    info = server.request("/object_info", timeout=120)
    return {name: _node(node) for name, node in sorted(info.items()) if name.startswith("GCFG")}


def _node(node: dict) -> dict:
    inputs = [_input(name, spec, optional) for name, spec, optional in _flat(node["input"], node["input_order"])]
    outputs = [{"name": name, "type": kind} for name, kind in zip(node["output_name"], node["output"], strict=True)]
    inputs.sort(key=lambda entry: entry["optional"])  # as every host orders them
    return {"inputs": inputs, "outputs": outputs, "output_node": node["output_node"]}


def _flat(groups: dict, order: dict | None = None):
    """Every input with its full name; one that grows is a choice, its longest form follows, as older hosts state it."""
    for group in ("required", "optional"):
        for name in (order or groups).get(group, []):
            spec, optional = groups[group][name], group == "optional"
            if spec[0] != GROWING:
                yield name, spec, optional
                continue
            forms = spec[1]["options"]
            yield name, ["COMBO", {"options": [form["key"] for form in forms]}], optional
            for inner, own, own_optional in _flat(forms[-1]["inputs"]):
                yield f"{name}.{inner}", own, own_optional


def _input(name: str, spec: list, optional: bool) -> dict:
    """Type, limits and choices of one input; old hosts write a choice as a bare list, new ones as COMBO."""
    settings = spec[1] if len(spec) > 1 else {}
    kind, options = ("COMBO", spec[0]) if isinstance(spec[0], list) else (spec[0], settings.get("options"))
    entry = {"name": name, "type": kind, "optional": optional}
    entry |= {key: settings[key] for key in _LIMITS if key in settings}
    return entry | ({"options": _LISTS.get(name, options)} if options is not None else {})


def breaks(old: dict[str, dict], new: dict[str, dict]) -> list[str]:
    """What would break a workflow saved with ``old``: anything but new nodes and additions at the end.

    An added input must be optional; choices may be added to the end of a list.
    """
    found = []
    for name, before in old.items():
        if name not in new:
            found.append(f"{name} is gone")
            continue
        after = new[name]
        if before["output_node"] != after["output_node"]:
            found.append(f"{name}: output_node changed")
        for group in ("inputs", "outputs"):
            for position, entry in enumerate(before[group]):
                now = after[group][position] if position < len(after[group]) else None
                if not _compatible(entry, now):
                    found.append(f"{name}, {group} {position}: {entry} became {now}")
        added = after["inputs"][len(before["inputs"]):]
        found += [f"{name}: the new input {entry['name']} is not optional" for entry in added if not entry["optional"]]
    return found


def _compatible(before: dict, after: dict | None) -> bool:
    if after is None:
        return False
    ours, theirs = before.get("options"), after.get("options")
    if isinstance(ours, list) and isinstance(theirs, list):
        return ours == theirs[:len(ours)] and before | {"options": 0} == after | {"options": 0}
    return before == after
