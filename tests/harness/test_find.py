"""Finding a ComfyUI and loading packages by location, on folders made up for it."""

import sys
from pathlib import Path

import pytest

from harness import find


def fake_host(folder: Path, version: str = "0.33.0") -> Path:
    for name in ("main.py", "nodes.py", "folder_paths.py", "comfy/samplers.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text(f'# made\n__version__ = "{version}"\n')
    return folder


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any ComfyUI."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(find, "PACK", tmp_path / "host" / "custom_nodes" / "gcfg")
    return tmp_path


def test_nothing(bare):
    assert find.find_host() is None


def test_environment_goes_first(bare, monkeypatch):
    fake_host(bare / "home" / "comfy" / "ComfyUI")
    named = fake_host(bare / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert find.find_host() == named


def test_enclosing_before_home(bare):
    home = fake_host(bare / "home" / "comfy" / "ComfyUI")
    assert find.find_host() == home
    enclosing = fake_host(bare / "host")
    assert find.find_host() == enclosing


def test_wrong_environment_is_an_error(bare, monkeypatch):
    fake_host(bare / "home" / "comfy" / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PATH", str(bare))
    with pytest.raises(find.HostNotFound, match="COMFYUI_PATH"):
        find.find_host()


def test_version(bare):
    assert find.host_version(fake_host(bare / "host", "0.3.64")) == (0, 3, 64)


def test_failed_package_leaves_no_trace(tmp_path):
    (tmp_path / "__init__.py").write_text("raise ValueError('broken')\n")
    with pytest.raises(ValueError, match="broken"):
        find.load_package("gcfg_broken_package", tmp_path)
    assert "gcfg_broken_package" not in sys.modules


def test_pack_root_is_not_importable():
    assert str(find.PACK) not in sys.path
    assert "" not in sys.path
