"""Where ComfyUI is, and its modules made importable, for the parts of the command line that need it."""

from __future__ import annotations

import sys
from pathlib import Path

from . import environment

LANDMARKS = ("main.py", "folder_paths.py", "comfy/samplers.py")


def find(named: str = "") -> Path:
    """The folder of ComfyUI: ``named``, COMFYUI_PATH, one around this package or working directory, ~/comfy/ComfyUI.

    Raises:
        FileNotFoundError: there is none, or not where it was named.
    """
    named = named or environment.comfyui_path()
    if named:
        path = Path(named).expanduser().resolve()
        if not _is_host(path):
            raise FileNotFoundError(f"there is no ComfyUI in '{named}' (no {', '.join(LANDMARKS)}).")
        return path
    here = Path(__file__).resolve()
    for path in (*here.parents, Path.cwd(), *Path.cwd().parents, Path.home() / "comfy" / "ComfyUI"):
        if _is_host(path):
            return path
    raise FileNotFoundError("ComfyUI was not found: name its folder with --comfyui, as comfyui in the settings, or in "
                            "the environment variable COMFYUI_PATH.")


def start(folder: Path, cpu: bool) -> None:
    """Make the host's modules importable, with the device chosen before any of them looks at it."""
    sys.path.insert(0, str(folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
    import utils.extra_config  # noqa: F401  (before any other package named utils)


def _is_host(path: Path) -> bool:
    return all((path / name).is_file() for name in LANDMARKS)
