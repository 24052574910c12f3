"""What a machine has and what is made for it: a ComfyUI, and a Python that runs it. The standard library only."""

import os
import subprocess
import sys
from pathlib import Path

from .ci import environment
from .find import find_host, host_version, is_host

RELEASE = "v0.33.0"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"

_HAS = """import re, sys
from importlib.metadata import version
for line in sys.stdin:
    if name := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip()):
        version(name[0])"""
"""Ends well where every distribution that the requirements name is installed."""
PIPELINES = "torch\nsafetensors\nnumpy\npillow\nmatplotlib\ndiffusers\ntransformers\nopen_clip_torch\n"


def cache() -> Path:
    """The folder for what this project makes on a machine; deleting it costs time only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gcfg"


def find_or_clone() -> tuple[Path | None, str]:
    """A ComfyUI that is here or was cloned into the cache, else None; and for None the reason in a line.

    Raises:
        HostNotFound: COMFYUI_PATH names none.
    """
    kept = [path for path in (cache() / "hosts").glob("ComfyUI-*") if is_host(path)]
    host = find_host() or max(kept, key=host_version, default=None)
    if host is not None:
        return host, ""
    folder = cache() / "hosts" / f"ComfyUI-{RELEASE.removeprefix('v')}"
    print(f"no ComfyUI here: cloning {RELEASE} into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", RELEASE, REPOSITORY, str(folder)]
    try:
        subprocess.run(command, check=True, timeout=900, capture_output=True, text=True,
                       env=os.environ | {"GIT_TERMINAL_PROMPT": "0"})
    except FileNotFoundError:
        return None, "git is not installed"
    except subprocess.TimeoutExpired:
        return None, "cloning it took more than 15 minutes"
    except subprocess.CalledProcessError as error:
        return None, (error.stderr.strip().splitlines() or [f"git ended with {error.returncode}"])[-1]
    return folder, ""


def python_for(host: Path | None) -> Path:
    """A Python that can run the host, or without one diffusers pipelines: this one, the host's own, or one made for it.

    Raises:
        subprocess.CalledProcessError: pip or venv failed; what they said has been printed.
    """
    needed = (host / "requirements.txt").read_text() if host else PIPELINES
    own = [environment.python_of(host / name) for name in (".venv", "venv")] if host else []
    portable = [host.parent / "python_embeded" / "python.exe"] if host else []
    made = environment.python_of(cache() / "env")
    for python in (Path(sys.executable), *own, *portable, made):
        if python.is_file() and _has(python, needed):
            return python
    print(f"making a Python environment in {cache() / 'env'}: minutes the first time, 6.5 GB with the CUDA build of "
          "PyTorch,\n2.5 GB with its CPU build (name PyTorch's index of CPU builds to pip in PIP_EXTRA_INDEX_URL)",
          flush=True)
    return environment.prepare(cache() / "env", host, quiet=not sys.stdout.isatty())


def _has(python: Path, needed: str) -> bool:
    """Whether a Python has every distribution of a requirements file."""
    try:
        return subprocess.run([str(python), "-c", _HAS], input=needed, text=True, capture_output=True,
                              timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
