"""The progress bar tells the time that is left by what was done since it began."""

import pytest

from gcfg import terminal


@pytest.mark.parametrize("first, expected", [(1, "10 s, 990 s left"), (501, "10 s, 4990 s left")])
def test_time_left(monkeypatch, capsys, first, expected):
    """Also of a run that goes on at step 500: it does not take its first steps for nothing."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    bar = terminal.ProgressBar("training", live=False)
    now[0] += 10.0
    bar(first, 100 if first == 1 else 1000, 0.5)
    assert f"{first}/{100 if first == 1 else 1000}  loss 0.5000  {expected}" in capsys.readouterr().err
