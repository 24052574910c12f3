"""Where the pack is and where ComfyUI is, and how a package is loaded without the pack folder on ``sys.path``."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parents[2]
_LANDMARKS = ("main.py", "nodes.py", "folder_paths.py", "comfy/samplers.py")

NO_HOST = (
    "no ComfyUI found: set COMFYUI_PATH to a ComfyUI checkout, put the pack into its custom_nodes folder, "
    "or clone ComfyUI into ~/comfy/ComfyUI"
)


class HostNotFound(RuntimeError):
    """A host was named or required, and it is not there."""


def is_host(path: Path) -> bool:
    """True if ``path`` holds a ComfyUI checkout."""
    return all((path / name).is_file() for name in _LANDMARKS)


def find_host() -> Path | None:
    """The ComfyUI to test on: ``COMFYUI_PATH``, one that encloses the pack, ``~/comfy/ComfyUI``, or None.

    A ``COMFYUI_PATH`` that names no ComfyUI is an error rather than a reason to take another one.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser().resolve()
        if not is_host(path):
            raise HostNotFound(f"COMFYUI_PATH is {named!r}, which holds no ComfyUI (no {', '.join(_LANDMARKS)})")
        return path
    for path in (*PACK.parents, Path.home() / "comfy" / "ComfyUI"):
        if is_host(path):
            return path
    return None


def host_version(host: Path) -> tuple[int, ...]:
    """The version of a host as numbers, read without importing it."""
    scope: dict[str, str] = {}
    for line in (host / "comfyui_version.py").read_text().splitlines():
        name, _, value = line.partition("=")
        scope[name.strip()] = value.strip().strip("\"'")
    return tuple(int(part) for part in scope["__version__"].split(".")[:3])


def load_package(name: str, folder: Path) -> ModuleType:
    """Import the package in ``folder`` under ``name``, leaving ``sys.path`` alone.

    The pack's folder ``nodes`` would shadow the host's module ``nodes`` if the pack's root were on the path.
    """
    if name in sys.modules:
        return sys.modules[name]
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
