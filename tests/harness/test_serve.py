"""Reading a server's log: only the pack's own failure is the pack's."""

import pytest

from harness.server.serve import pack_failed

LOADED = "Import times for custom nodes:\n   0.2 seconds: {base}/custom_nodes/gcfg\n"
NODES_OF_THE_HOST = "WARNING: some comfy_extras/ nodes did not import correctly.\n\nIMPORT FAILED: nodes_glsl.py\n"
NEIGHBOUR = "   0.0 seconds (IMPORT FAILED): {base}/custom_nodes/gcfg-tools\n"


@pytest.mark.parametrize("log", [LOADED, LOADED + NODES_OF_THE_HOST, NEIGHBOUR + LOADED])
def test_failures_of_others_are_not_the_packs(log):
    assert not pack_failed(log)


@pytest.mark.parametrize("line", [
    "   0.4 seconds (IMPORT FAILED): {base}/custom_nodes/gcfg\n",
    "   0.4 seconds (IMPORT FAILED): C:\\ComfyUI\\custom_nodes\\gcfg\r\n",
])
def test_its_own_failure_is_found(line):
    assert pack_failed(NODES_OF_THE_HOST + line + NEIGHBOUR)
