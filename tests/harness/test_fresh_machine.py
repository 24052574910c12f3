"""The two commands of the README in an empty HOME and a new virtual environment, without ComfyUI.

With one: tests/host/server/test_try_in_comfyui.py.
"""

from importlib import metadata

import pytest
from PIL import Image

from harness.find import PACK
from harness.fresh import fresh_machine

NEEDED = ("diffusers", "transformers", "open_clip_torch")
MISSING = [name for name in NEEDED if not list(metadata.distributions(name=name))]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs tools/try_in_comfyui.py in the new environment; the finished process, its output as text."""
    return fresh_machine(tmp_path_factory.mktemp("machine"))


def test_command_1_makes_pictures_and_the_second_time_finds_them(command, tmp_path):
    workflow = next(PACK.glob("workflows/api/*Concept and Control.json"))
    first = command("--without-comfyui", "--output", tmp_path, workflow)
    assert first.returncode == 0, first.stderr
    picture = tmp_path / f"{workflow.stem}.png"
    assert picture.as_uri() in first.stdout and Image.open(picture).height == 3 * 64
    assert picture.name in (tmp_path / "index.html").read_text(encoding="utf-8")
    before = picture.stat().st_mtime_ns
    second = command("--without-comfyui", "--output", tmp_path, workflow)
    assert second.returncode == 0 and picture.stat().st_mtime_ns == before


def test_command_2_passes_without_a_host(command):
    chosen = ("tests/guidance/test_plan.py", "tests/host/sampling/test_node.py")
    done = command("--without-comfyui", "--test", "-q", *chosen)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "no ComfyUI found" in done.stdout and "skipped" in done.stdout


def test_what_cannot_be_used_is_a_sentence(command, tmp_path):
    (tmp_path / "graph.json").write_text('{"nodes": []}')
    done = command("--without-comfyui", "--output", tmp_path, tmp_path / "graph.json")
    assert done.returncode == 2
    assert "API format" in done.stderr and "Traceback" not in done.stderr
