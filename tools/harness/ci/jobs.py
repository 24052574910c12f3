"""Test runs side by side: each with its own time limit, its output in one piece, its closing line at the end."""

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

_TIMED_OUT = (124, 137, -9)  # what coreutils' timeout returns, politely and by force
_CLOSING = re.compile(r"^(=+ )?.*\b(passed|failed|skipped|errors?|no tests ran|deselected)\b.* in [\d.]+s.*$")
_printing = threading.Lock()


@dataclass(frozen=True)
class Job:
    """A command with its limit in seconds, and what its environment has beside this process's."""

    name: str
    command: Sequence[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: exit code, seconds, the line that sums it up."""

    name: str
    code: int
    seconds: float
    closing: str

    @property
    def verdict(self) -> str:
        if self.code in _TIMED_OUT:
            return "ran past its time limit"
        return f"failed ({self.code})" if self.code else "passed"


def run_all(jobs: Sequence[Job], side_by_side: int) -> int:
    """Run the jobs, so many at a time, and print what they said, then a summary; the number that failed.

    The closing lines come at the very end, those of failed jobs last.
    """
    with ThreadPoolExecutor(side_by_side) as pool:
        outcomes = list(pool.map(run, jobs))
    print("\n== summary")
    for outcome in sorted(reversed(outcomes), key=lambda outcome: outcome.code != 0):
        print(f"-- {outcome.name}: {outcome.verdict}, {outcome.seconds:.0f} s\n{outcome.closing}", flush=True)
    return sum(outcome.code != 0 for outcome in outcomes)


def run(job: Job) -> Outcome:
    """Run one job and print its output when it has ended; at its limit it ends with every server that it started."""
    _say(f"== {job.name}: begins")
    started = time.monotonic()
    limited = ["timeout", "--kill-after=30", str(job.limit), *job.command]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        code = subprocess.run(limited, stdout=output, stderr=output, env=os.environ | job.environment).returncode
        output.seek(0)
        text = output.read().rstrip()
    seconds = time.monotonic() - started
    _say(f"== {job.name}: exit code {code} after {seconds:.0f} s\n{text}")
    return Outcome(job.name, code, seconds, closing_line(text))


def closing_line(text: str) -> str:
    """The line in which pytest sums a run up, or the last line where there is none."""
    lines = text.splitlines() or [""]
    return next((line for line in reversed(lines) if _CLOSING.match(line)), lines[-1])


def _say(text: str) -> None:
    with _printing:
        print(text, flush=True)
