"""A workflow that was saved with any version of the pack still fits its nodes.

A change that is meant, in a version that is not released: ``python tools/write_object_info.py``.
"""

import copy
import json
import re

import pytest

from harness.find import PACK
from harness.server.object_info import breaks, snapshot

FOLDER = PACK / "tests" / "host" / "server" / "object_info"
VERSION = re.search(r'^version = "(.+)"$', (PACK / "pyproject.toml").read_text(), re.MULTILINE)[1]
SNAPSHOTS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def test_current_version_has_a_snapshot():
    assert VERSION in SNAPSHOTS, "run tools/write_object_info.py"


@pytest.mark.server
@pytest.mark.smoke
@pytest.mark.parametrize("version", SNAPSHOTS)
def test_nothing_that_a_saved_workflow_needs_has_changed(server, version):
    assert breaks(SNAPSHOTS[version], snapshot(server)) == []


@pytest.mark.parametrize("change", [
    lambda node: node["inputs"].pop(),
    lambda node: node["inputs"].insert(0, node["inputs"].pop(1)),
    lambda node: node["inputs"][0].update(name="base"),
    lambda node: node["inputs"][5].update(default=20),
    lambda node: node["outputs"].pop(),
    lambda node: node["inputs"].append({"name": "new", "type": "INT", "optional": False}),
])
def test_a_break_is_found(change):
    old = SNAPSHOTS[VERSION]
    new = copy.deepcopy(old)
    change(new["GCFGKSampler"])
    assert len(breaks(old, new)) >= 1


def test_additions_are_no_break():
    old = SNAPSHOTS[VERSION]
    new = copy.deepcopy(old) | {"GCFGNew": {"inputs": [], "outputs": [], "output_node": False}}
    new["GCFGKSampler"]["inputs"].append({"name": "new", "type": "INT", "optional": True})
    new["GCFGSaveConceptModel"]["inputs"][3]["options"].append("another")
    assert breaks(old, new) == []
