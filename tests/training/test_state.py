"""States on disk: whole or not there."""

import pytest
import torch

from gcfg.training.run import folder, state


def example(step, value=1.0):
    return state.State(step, {"a.b": torch.full((3, 2), value), "h": torch.ones(2, dtype=torch.bfloat16)},
                       {"a.b": torch.zeros(3, 2)}, {"a.b/step": torch.tensor(float(step))},
                       {"block": torch.ones(1, 1, 4)}, torch.tensor([[1.0, 0.5]], dtype=torch.float64),
                       {"micro_batch": 2, "name": "ö"})


def test_there_and_back(tmp_path):
    state.save(tmp_path, example(7))
    again = state.latest(tmp_path)
    assert again.step == 7 and again.notes == {"micro_batch": 2, "name": "ö"}
    assert again.tensors().keys() == example(7).tensors().keys()
    for name, value in example(7).tensors().items():
        assert torch.equal(again.tensors()[name], value) and again.tensors()[name].dtype == value.dtype


def test_keeps_the_newest(tmp_path):
    for step in (1, 2, 30):
        state.save(tmp_path, example(step), keep=2)
    assert [path.name for path in state.files(tmp_path)] == ["step_00000002.state", "step_00000030.state"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "garbage"])
def test_damaged_file_is_noticed_and_the_one_before_it_used(tmp_path, caplog, damage):
    state.save(tmp_path, example(1))
    path = state.save(tmp_path, example(2))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"cut": content[:-20], "flip": content, "empty": b"", "garbage": b"\xff" * 64}[damage])
    assert state.latest(tmp_path).step == 1
    assert "step_00000002.state is damaged" in caplog.text


def test_remains_of_a_killed_process_are_removed(tmp_path):
    place = folder.RunFolder(tmp_path / "run")
    with place.locked():
        left = [path / ".something.123.part" for path in (place.path, place.states, place.previews)]
        for path in left:
            path.write_bytes(b"half")
    with place.locked():
        assert not any(path.exists() for path in left)
    assert state.latest(place.states) is None


def test_one_process_at_a_time(tmp_path):
    place, other = (folder.RunFolder(tmp_path / "run") for _ in range(2))
    with place.locked(), pytest.raises(RuntimeError, match="another process is training the run .* choose another"):
        with other.locked():
            pass
    with other.locked():
        pass


def test_tensors_are_read_one_at_a_time(tmp_path, monkeypatch):
    path = state.save(tmp_path, example(7))
    asked, original = [], state.checkpoint.read_tensor
    monkeypatch.setattr(state.checkpoint, "read_tensor", lambda *args: asked.append(args) or original(*args))
    again = state.load(path)
    assert len(asked) == 1  # the history
    assert again.parameters["h"].dtype == torch.bfloat16 and len(asked) == 2


def test_nothing_is_lost_when_the_disk_is_full(tmp_path, little_space):
    state.save(tmp_path, example(1), keep=1)
    with little_space(200), pytest.raises(OSError):
        state.save(tmp_path, example(2), keep=1)
    assert state.latest(tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.state"]
