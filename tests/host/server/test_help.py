"""Every node explains itself: a description, a tooltip on every input and output, a help page that names its inputs."""

import asyncio
import re
from dataclasses import fields

import pytest
from comfy_api.latest import io

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
    assert {s.id for s in schema.inputs} & {s.id for s in schema.outputs} == set(), "older hosts refuse that"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_help_page_names_every_input_and_output(node):
    schema, page = node.GET_SCHEMA(), (DOCS / f"{node.__name__}.md").read_text()
    assert page.startswith(f"# {schema.display_name}\n")
    names = [socket.id for socket in schema.inputs] + [socket.display_name for socket in schema.outputs]
    names = [name for name in names if not name.startswith("guidances.")]  # the rows of a stack, on older hosts
    assert [name for name in names if f"**{name}**" not in page] == []


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_help_page_fits_the_panel(node):
    """The frontend shows it in a panel of 302 pixels: no tables, formulas in short lines, pictures that are there."""
    page = (DOCS / f"{node.__name__}.md").read_text()
    formulas = [line for block in re.findall(r"\n\n((?: {4}.*\n)+)", page) for line in block.splitlines()]
    assert [line for line in page.splitlines() if line.startswith("|")] == []
    assert [line for line in formulas if len(line) > 46] == []
    assert [line for line in page.splitlines() if page.count(line) > 1 and line.startswith("* **")] == []
    assert [name for name in re.findall(r"!\[.*?\]\((.*?)\)", page) if not (DOCS / name).is_file()] == []


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_node_is_found_by_other_words_and_stands_alone_in_a_list(node):
    schema = node.GET_SCHEMA()
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        assert len(schema.search_aliases) >= 3
    assert schema.category.split("/")[0] == "GCFG"
    assert re.search("GCFG|Concept|Null-Text|Subject", schema.display_name)


def test_no_page_without_a_node():
    assert {path.stem for path in DOCS.glob("*.md")} == {node.__name__ for node in NODES}
