"""A machine as a newcomer has it: an empty home, a new virtual environment, and the commands of the README in it."""

import os
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

from .ci.environment import python_of
from .find import PACK

KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP")


def fresh_machine(folder: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs ``tools/try_in_comfyui.py`` with given arguments there; variables of its environment by name.

    The packages of this Python are lent to the environment: that pip can install them is the business of the CI that
    has a network (.github/workflows/tests.yml, the job fresh-machine).
    """
    venv.create(folder / "env", with_pip=False)
    python = python_of(folder / "env")
    site = subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          capture_output=True, text=True, check=True).stdout.strip()
    with open(os.path.join(site, "lent.pth"), "w", encoding="utf-8") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    home = folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    kept |= {"HOME": str(home), "USERPROFILE": str(home), "OMP_NUM_THREADS": "1"}

    def run(*arguments, **environment) -> subprocess.CompletedProcess:
        tool = [str(python), str(PACK / "tools" / "try_in_comfyui.py"), *map(str, arguments)]
        return subprocess.run(tool, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=1500)

    return run
