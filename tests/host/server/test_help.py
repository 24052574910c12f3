"""Every node explains itself: a description, a tooltip on every input and output, a help page that names its inputs."""

import asyncio

import pytest

from gcfg_pack import comfy_entrypoint
from harness.find import PACK


async def _nodes():
    return await (await comfy_entrypoint()).get_node_list()


NODES = asyncio.run(_nodes())
DOCS = PACK / "web" / "docs"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_node_explains_itself(node):
    schema = node.GET_SCHEMA()
    assert schema.node_id == node.__name__
    assert schema.description
    assert [socket.id for socket in schema.inputs if not socket.tooltip] == []
    assert [socket.display_name for socket in schema.outputs if not socket.tooltip] == []


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_help_page_names_every_input_and_output(node):
    schema, page = node.GET_SCHEMA(), (DOCS / f"{node.__name__}.md").read_text()
    assert page.startswith(f"# {schema.display_name}\n")
    names = [socket.id for socket in schema.inputs] + [socket.display_name for socket in schema.outputs]
    assert [name for name in names if f"**{name}**" not in page] == []


def test_no_page_without_a_node():
    assert {path.stem for path in DOCS.glob("*.md")} == {node.__name__ for node in NODES}
