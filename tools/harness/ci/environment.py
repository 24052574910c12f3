"""One Python environment for all hosts, or for a machine without one, and a browser."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..find import PACK

# torch as the newest host was measured with (later releases have no torchaudio that matches), and what the GLSL nodes
# of 0.18 import without asking for it. The requirements of the newest host serve the older ones too.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
MORE = ("glfw",)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def prepare(folder: Path, host: Path | None, quiet: bool = True) -> Path:
    """The environment in ``folder`` with what ``host`` and the tests need; its Python.

    A mark holds what was asked for when it was last complete, so that a second run installs nothing.

    Args:
        host: without one, torch and what the tests need.
        quiet: show nothing of pip's progress.
    """
    python, mark = python_of(folder), folder / "complete"
    if not _runs(python):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    requirements = host / "requirements.txt" if host else None
    wanted = "\n".join([*TORCH, *MORE, requirements.read_text() if host else "", str(PACK),
                        (PACK / "pyproject.toml").read_text()])
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"installing the requirements of {host.name if host else 'the tests'} into {folder}", flush=True)
        mark.unlink(missing_ok=True)
        _pip(python, quiet, *TORCH, *MORE, *(["-r", str(requirements)] if host else []))
        _pip(python, quiet, "-e", f"{PACK}[test]")
        mark.write_text(wanted)
    return python


def python_of(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def install_browser() -> None:
    """Debian's chromium where this machine has no browser and lets us install one."""
    if any(map(shutil.which, BROWSERS)):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 600}
        apt = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=apt, **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], env=apt, **quiet)
    if not any(map(shutil.which, BROWSERS)):
        print("no browser, and none could be installed: the browser tests will say so", flush=True)


def _runs(python: Path) -> bool:
    return python.is_file() and subprocess.run([str(python), "-c", "import pip"], capture_output=True).returncode == 0


def _pip(python: Path, quiet: bool, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *(["--quiet"] if quiet else [])]
    subprocess.run([*command, *arguments], check=True, timeout=3600)
