"""Other packs in this process, loaded by the host from checkouts in the folder ``GCFG_OTHER_PACKS``; skipped without.

What was measured goes to the page ``GCFG_BESIDE_TABLE`` where that names one, for instance docs/BESIDE.md.
"""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

FOLDER = os.environ.get("GCFG_OTHER_PACKS")
TABLE = os.environ.get("GCFG_BESIDE_TABLE")
ROWS: dict[str, list[str]] = {}
LOADED: dict[str, str] = {}  # pack: why it did not load, or nothing


@pytest.fixture(scope="session")
def packs():
    """The host's nodes by id, those of the other packs among them."""
    if not FOLDER:
        pytest.skip("GCFG_OTHER_PACKS names no folder with checkouts of other packs")
    import nodes
    import server

    server.PromptServer(asyncio.new_event_loop())  # packs add routes to it when they are imported
    asyncio.run(nodes.init_builtin_extra_nodes())
    for folder in sorted(path for path in Path(FOLDER).expanduser().iterdir() if path.is_dir()):
        LOADED[folder.name] = "" if asyncio.run(nodes.load_custom_node(str(folder))) else "does not load on this host"
    return nodes.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="session")
def wide(packs):
    """A base with the blocks of the real UNet, for packs that count them; 2.4 GB."""
    from harness.models import motion

    return motion.sd15(seed=1)


@pytest.fixture
def node(packs):
    """Calls a node of another pack by its id: its widgets have their defaults, but for what is given."""
    def run(pack: str, name: str, **inputs):
        if name not in packs:
            pytest.skip(f"{pack} {LOADED.get(pack) or 'is not in GCFG_OTHER_PACKS'}")
        kind = packs[name]
        values = {key: spec[1]["default"] if len(spec) > 1 and "default" in spec[1] else _choices(spec)[0]
                  for key, spec in kind.INPUT_TYPES()["required"].items() if key not in inputs}
        result = getattr(kind() if not hasattr(kind, "define_schema") else kind, kind.FUNCTION)(**values, **inputs)
        return tuple(getattr(result, "args", result))
    return run


@pytest.fixture
def close():
    """Asserts that a figure is below a bound, and keeps it for the table."""
    def check(pack: str, what: str, where: str, figure: float, bound: float = 1e-4) -> None:
        _note(pack, what, where, f"{figure:.1e}")
        assert figure < bound
    return check


@pytest.fixture
def refused():
    """Keeps for the table that a combination is refused."""
    return lambda pack, what, where: _note(pack, what, where, "refused")


def _choices(spec) -> list:
    return spec[0] if isinstance(spec[0], list) else spec[1]["options"]


def _note(pack: str, what: str, where: str, figure: str) -> None:
    ROWS.setdefault(pack, []).append(f"| {what} | {where} | {figure} |")


def pytest_sessionfinish(session):
    """Write what was measured into its section of the page, one for each version of the host."""
    if not (TABLE and ROWS):
        return
    from comfyui_version import __version__

    text = [f"## Measured on ComfyUI {__version__}", ""]
    for pack, rows in sorted(ROWS.items()):
        text += [f"### {pack} ({_commit(Path(FOLDER).expanduser() / pack)})", "",
                 "| node | on | largest difference |", "|---|---|---|", *rows, ""]
    text += [f"* {pack} ({_commit(Path(FOLDER).expanduser() / pack)}) {why}." for pack, why in LOADED.items() if why]
    sections = re.split(r"^(?=## Measured on )", Path(TABLE).read_text(), flags=re.MULTILINE)
    others = [section.strip() for section in sections if not section.startswith(text[0] + "\n")]
    Path(TABLE).write_text("\n\n".join([*others, "\n".join(text).strip()]) + "\n")


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h, %cs"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no git checkout"
