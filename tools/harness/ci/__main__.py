"""``python -m harness.ci [pytest's arguments]``: everything on the newest host, the host tests on the oldest, a smoke
set on those between. Needs Python's standard library only."""

import os
import sys
from pathlib import Path

from ..find import NO_HOST, PACK
from . import environment, hosts
from .jobs import Job, run_all

MINUTE = 60


def main(arguments: list[str]) -> int:
    os.environ.pop("PYTHONPATH", None)  # it led here and is nothing that a test should see
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gcfg"
    found = hosts.collect(PACK.parent / "shared" / "hosts", cache / "hosts")
    if not found:
        print(f"{NO_HOST}, or packed ones into ../shared/hosts", file=sys.stderr)
        return 1
    python = environment.prepare(cache / "env", list(found.values())[-1])
    environment.install_browser()
    os.chdir(PACK)
    return 1 if run_all(plan(found, str(python), arguments), side_by_side=min(2, os.cpu_count() or 1)) else 0


def plan(found: dict[hosts.Version, Path], python: str, arguments: list[str]) -> list[Job]:
    """Lint and the test runs, the longest first. ``found`` are the hosts, oldest first."""
    *between, newest = found
    oldest = between.pop(0) if between else None

    def job(version: hosts.Version, minutes: float, what: str, *selection: str) -> Job:
        command = [python, "-m", "pytest", "--durations=12", *selection, *arguments]
        variables = {"COMFYUI_PATH": str(found[version]), "GCFG_REQUIRE_HOST": "1", "OMP_NUM_THREADS": "1"}
        return Job(f"ComfyUI {'.'.join(map(str, version))}, {what}", command, minutes * MINUTE, variables)

    jobs = [job(newest, 40, "everything"), Job("lint", [python, "-m", "ruff", "check", "."], MINUTE)]
    if oldest:
        jobs.append(job(oldest, 30, "host tests", "tests/host"))
    return jobs + [job(version, 10, "smoke set", "tests/host", "-m", "smoke") for version in between]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
