"""Events for TensorBoard where it is installed."""

import sys
import types

import pytest

from .test_loop import StopAfter, equal, final


class Writer:
    """Keeps what TensorBoard would."""

    made = []

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, step))

    def close(self):
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch):
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    return Writer


def test_events_of_every_step_and_of_those_after_an_interruption(make, tensorboard):
    make("run", StopAfter(3), target_steps=6).run()
    run = make("run", target_steps=6)
    run.run()
    first, second = tensorboard.made
    assert (first.folder, second.purge_step) == (str(run.folder.path / "tensorboard"), 4) and second.closed
    steps = [step for writer in (first, second) for name, step in writer.scalars if name == "loss"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert {name for name, _ in first.scalars} == {"loss", "held_out_loss", "learning_rate", "gradient_norm"}


def test_off_missing_or_broken_it_changes_nothing(make, tensorboard, monkeypatch, caplog):
    plain = make("off", tensorboard=False)
    plain.run()
    assert tensorboard.made == []
    monkeypatch.setattr(tensorboard, "add_scalar", lambda *_: 1 / 0)
    broken = make("broken")
    broken.run()
    assert caplog.text.count("no more events for TensorBoard (ZeroDivisionError") == 1
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    missing = make("missing")
    missing.run()
    assert equal(final(plain), final(broken)) and equal(final(plain), final(missing))


def test_real_events(make):
    pytest.importorskip("tensorboard")
    run = make("run", target_steps=2)
    run.run()
    assert list((run.folder.path / "tensorboard").glob("events*"))
