"""What the command line tools show: a progress bar on the error output and plain tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


class ProgressBar:
    """A progress bar, called with (done, total) or (done, total, loss).

    Redrawn in place on a terminal; a line every tenth otherwise, or with ``live`` False, for several at once.
    """

    WIDTH = 30

    def __init__(self, label: str, live: bool = True):
        self.label, self.stream = label, sys.stderr
        self.live, self.start, self.tenth = live and self.stream.isatty(), time.monotonic(), -1
        self.before = None

    def __call__(self, done: int, total: int, loss: float | None = None) -> None:
        if self.before is None:
            self.before = done - 1  # what was there when it began, as of a run that goes on
        elapsed = time.monotonic() - self.start
        left = elapsed / (done - self.before) * (total - done)
        note = "" if loss is None else f"  loss {loss:.4f}"
        text = f"{self.label:<24} {done}/{total}{note}  {elapsed:.0f} s, {left:.0f} s left"
        if self.live:
            filled = self.WIDTH * done // total
            bar = "#" * filled + "." * (self.WIDTH - filled)
            self.stream.write(f"\r[{bar}] {text}   " + ("\n" if done == total else ""))
        elif done * 10 // total != self.tenth:
            self.tenth = done * 10 // total
            self.stream.write(text + "\n")
        self.stream.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a head, the first column left and the others right aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, rows)])
