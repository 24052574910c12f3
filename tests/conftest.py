"""Import plumbing for every test: this tree's ``gcfg`` and ``harness``, without the pack's root on ``sys.path``.

``python -m pytest`` puts the working directory on the path, where the pack's folder ``nodes`` would shadow the host's
module ``nodes``. The packages that tests import are therefore loaded by location.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The models here are tiny: threads cost more than they bring, and on a busy machine a hundred times more. Set before
# torch is imported; the servers that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

with contextlib.suppress(ImportError):  # a drawn case is no slower for being wrong: a busy machine must not fail it
    import hypothesis

    hypothesis.settings.register_profile("gcfg", deadline=None)
    hypothesis.settings.load_profile("gcfg")

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def _load_harness():
    folder = ROOT / "tools" / "harness"
    spec = importlib.util.spec_from_file_location(
        "harness", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module
    spec.loader.exec_module(module)


_load_harness()

from harness.find import load_package  # noqa: E402

if (ROOT / "gcfg" / "__init__.py").is_file():
    load_package("gcfg", ROOT / "gcfg")


@pytest.fixture
def small_disk(tmp_path):
    """The folder of a real disk of 32 megabytes, which other files can fill; skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    try:
        made = subprocess.run(options, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be mounted ({error})")
    if made.returncode:
        pytest.skip(f"no disk can be mounted ({made.stderr.strip()})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def filled():
    """filled(disk): within, a disk has no byte left."""
    @contextlib.contextmanager
    def fill(disk):
        ballast = disk / "ballast"
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        try:
            yield
        finally:
            ballast.unlink()
    return fill
