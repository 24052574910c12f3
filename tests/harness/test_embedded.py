"""Workflows as recipes for diffusers pipelines, and what a machine is found to have."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import machine, workflow
from harness.find import PACK

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install '.[diffusers]')")
pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[diffusers]')")

from harness import embedded


def shipped(name):
    """A shipped workflow whose title ends so."""
    return workflow.read(next(PACK.glob(f"workflows/api/*{name}.json")))


def test_a_workflow_is_read_as_its_recipe():
    request = embedded.read(shipped("Concept and Control"))
    control, concept = request.recipe.guidances
    assert request.prompts[control.prediction.conditioning] == "a photo of a person wearing glasses"
    assert request.prompts["unconditional"] == ""
    assert list(request.models) == [concept.prediction.model] and concept.prediction.conditioning == "unconditional"
    assert list(embedded.rows_of(request)) == ["base alone", "concept alone", "GCFG"]


def test_a_chain_of_guidances_is_read_in_its_order():
    request = embedded.read(shipped("Several Guidances"))
    assert [g.name for g in request.recipe.guidances][0] == "control" and len(request.recipe.guidances) == 3
    assert request.models == {} and len(request.prompts) == 4


@pytest.mark.parametrize("name", ["Inspect Guidance", "Train a Concept Model", "Image to Image Translation"])
def test_what_a_pipeline_cannot_do_says_so(name):
    with pytest.raises(embedded.NeedsComfyUI, match="needs ComfyUI"):
        embedded.read(shipped(name))


def test_what_a_python_has():
    here = Path(sys.executable)
    assert machine._has(here, "pytest\n# a comment\n\nnumpy>=1\n")
    assert not machine._has(here, "pytest\nno-such-distribution-of-gcfg==1\n")
    assert not machine._has(Path("no/such/python"), "pytest")


def test_the_newest_kept_host_serves(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "find_host", lambda: None)
    for version in ("0.8.0", "0.33.0", "0.3.64"):
        folder = tmp_path / "gcfg" / "hosts" / f"ComfyUI-{version}"
        for name in ("main.py", "nodes.py", "folder_paths.py", "comfy/samplers.py"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    assert machine.find_or_clone()[0].name == "ComfyUI-0.33.0"


def test_without_git_or_network_there_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "find_host", lambda: None)

    def fails(*_, **__):
        raise subprocess.CalledProcessError(128, "git", stderr="Cloning...\nfatal: could not resolve host\n")

    monkeypatch.setattr(subprocess, "run", fails)
    assert machine.find_or_clone() == (None, "fatal: could not resolve host")

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.find_or_clone() == (None, "git is not installed")
