"""States on disk: whole or not there."""

import pytest
import torch

from gcfg.training import state


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


def test_nothing_is_lost_when_the_disk_is_full(tmp_path, monkeypatch):
    state.save(tmp_path, example(1), keep=1)

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        state.save(tmp_path, example(2), keep=1)
    assert state.latest(tmp_path).step == 1


def test_remains_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".step_00000005.state.123.part").write_bytes(b"half")
    state.clear_remains(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert state.latest(tmp_path) is None
