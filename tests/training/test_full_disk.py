"""A disk that is full, in every phase of a run: a sentence, nothing lost, nothing left over.

The disk is a real small one (tmpfs), which other files fill at the moment in question.
"""

import contextlib
import os
import subprocess

import pytest

from gcfg.training.data import dataset
from gcfg.training.run import folder, state
from gcfg.training.run.task import Watch

from .conftest import draw_pictures, encode
from .test_crashes import remains
from .test_loop import StopAfter, equal, final


class Fills(Watch):
    """Enters a context after a step."""

    def __init__(self, filled, step):
        self.filled, self.step, self.full = filled, step, contextlib.ExitStack()

    def progress(self, step, steps, loss):
        if step == self.step:
            self.full.enter_context(self.filled)


def test_at_the_start(make, small_disk, filled, tmp_path):
    (tmp_path / "runs").symlink_to(small_disk)
    with filled(small_disk), pytest.raises(OSError, match="run's folder .* cannot be written .No space left"):
        make("run")
    make("run").run()


@pytest.mark.parametrize("step", [2, 3])  # in the middle of the time between saves, and just before one
def test_in_training(make, small_disk, filled, tmp_path, step):
    (tmp_path / "runs").symlink_to(small_disk)
    make("run", StopAfter(1)).run()
    watch = Fills(filled(small_disk), step)
    run = make("run", watch, save_every=3)
    with pytest.raises(OSError, match=r"could not be written \(.*No space left.*\). Free some space.* from step 1\."):
        run.run()
    watch.full.close()
    assert state.latest(run.folder.states).step == 1 and remains(small_disk) == []
    again, whole = make("run", save_every=3), make("whole", save_every=3)
    again.run()
    whole.run()
    assert equal(final(again), final(whole)) and again.folder.table.read_text() == whole.folder.table.read_text()


def test_while_latents_are_written(small_disk, filled, tmp_path):
    pictures, calls = draw_pictures(tmp_path / "p", 12), []
    source = dataset.Source(str(pictures), 64)

    def counting(batch):
        calls.append(1)
        if len(calls) == 9:
            full.enter_context(filled(small_disk))
        return encode(batch)
    with contextlib.ExitStack() as full, pytest.raises(
            OSError, match="latents in .* cannot be written .No space left.* free some space.*what is encoded stays"):
        dataset.cache(source, small_disk, "vae", counting)
    assert len(list(small_disk.rglob("*.npy"))) in (3, 4) and remains(small_disk) == []
    before = len(calls)
    assert len(dataset.cache(source, small_disk, "vae", counting).found) == 12
    assert len(calls) <= 24 + 2 + before - 9 and dataset.cache(source, small_disk, "vae", counting).skipped == ()


def test_a_table_that_cannot_be_added_to(make, monkeypatch):
    """Only the table, so that the state can still be saved."""
    run = make("run", save_every=100)
    original = folder.RunFolder.append

    def append(self, row):
        if row[0] == 3:
            self.table.unlink()
            self.table.mkdir()
        original(self, row)
    monkeypatch.setattr(folder.RunFolder, "append", append)
    with pytest.raises(OSError, match="run's folder .* cannot be written .Is a directory.* state of step 3 is saved"):
        run.run()
    os.rmdir(run.folder.table)
    assert make("run", save_every=100).step == 3


def test_a_read_only_disk(make, small_disk, tmp_path):
    (tmp_path / "runs").symlink_to(small_disk)
    run = make("run", StopAfter(2))
    run.run()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="run's folder .* cannot be written .Read-only file system.; make it writable"):
        make("run")
    with pytest.raises(OSError, match="cannot be written .Read-only"), run.folder.locked():
        pass
    assert state.latest(run.folder.states).step == 2


def test_too_little_space_for_the_states_is_said_before_the_first_step(make, small_disk, tmp_path):
    (tmp_path / "runs").symlink_to(small_disk)
    with pytest.raises(OSError, match="a save takes .* with keep = 9999 .*lower keep"):
        make("run", keep=9999).run()
    assert state.files(small_disk / "run" / "states") == []
