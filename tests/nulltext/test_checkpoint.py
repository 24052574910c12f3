"""Hostile and broken files: a clear error each, nothing executed; writing is atomic."""

import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gcfg.nulltext.formats import checkpoint
from gcfg.nulltext.formats.checkpoint import CheckpointError

TENSORS = {"a": torch.randn(3, 4), "half": torch.randn(5).half(), "wide": torch.randn(2, 2).bfloat16(),
           "scalar": torch.zeros(()), "empty": torch.zeros(0, 3), "count": torch.arange(3)}


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.safetensors"
    checkpoint.write(path, TENSORS, {"gcfg.kind": "test"})
    return path


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def edit(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_round_trip_is_bit_equal_and_agrees_with_safetensors(good, tmp_path):
    tensors, metadata = checkpoint.read(good)
    assert same(tensors, TENSORS) and metadata == {"gcfg.kind": "test"}
    assert same(load_file(good), TENSORS)
    other = tmp_path / "other.sft"
    save_file(TENSORS, other)
    assert same(checkpoint.read(other)[0], TENSORS)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"unet": t}])
def test_pickles_of_tensors_are_read(tmp_path, suffix, wrap):
    path = tmp_path / f"model{suffix}"
    torch.save(wrap(TENSORS), path)
    assert same(checkpoint.read(path)[0], TENSORS)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_with_code_executes_nothing(tmp_path, legacy):
    path, mark = tmp_path / "evil.bin", tmp_path / "executed"
    torch.save({"a": torch.zeros(2), "evil": Payload(str(mark))}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="evil.bin: refused.*more than plain tensors"):
        checkpoint.read(path)
    raw = tmp_path / "raw.ckpt"
    raw.write_bytes(pickle.dumps(Payload(str(mark))))
    with pytest.raises(CheckpointError, match="refused"):
        checkpoint.read(raw)
    assert not mark.exists()


def test_pickles_that_are_no_state_dict(tmp_path):
    for content in (torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}):
        path = tmp_path / "x.pt"
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="no named weights"):
            checkpoint.read(path)


def test_pickles_with_odd_tensors(tmp_path):
    for tensor in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        path = tmp_path / "x.pt"
        torch.save({"a": tensor}, path)
        with pytest.raises(CheckpointError, match="'a' is a sparse|refused"):
            checkpoint.read(path)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\0", b"hello", b"\x80\x02}q\0.", b"PK\x03\x04" + b"\0" * 40, b"\xff" * 64])
def test_garbage(tmp_path, suffix, content):
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="garbage") as error:
        checkpoint.read(path)
    assert len(str(error.value)) > 40


@pytest.mark.parametrize("kept", [4, 20, 0.3, 0.9, -1])
def test_truncated_safetensors(good, kept):
    data = good.read_bytes()
    good.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(CheckpointError, match="broken.*(again)"):
        checkpoint.read(good)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt"])
def test_truncated_pickle(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


@pytest.mark.parametrize("claim", [2 << 30, (1 << 63) + 5, checkpoint.HEADER_LIMIT + 1])
def test_huge_header(tmp_path, claim):
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", claim))
        file.truncate(3 << 30)  # sparse: the file is as large as it says, and takes no space
    with pytest.raises(CheckpointError, match=f"header claims {claim} bytes"):
        checkpoint.read(path)


def test_header_that_nests_too_deep(tmp_path):
    path, text = tmp_path / "deep.safetensors", b"[" * 500_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="header is unreadable"):
        checkpoint.read(path)


@pytest.mark.parametrize("change", [
    lambda h: h["a"].update(data_offsets=[0, 1 << 40]),
    lambda h: h["a"].update(data_offsets=[-4, 44]),
    lambda h: h["a"].update(data_offsets=[0]),
    lambda h: h["a"].update(shape=[1 << 62, 1 << 62]),
    lambda h: h["a"].update(shape=[-3, -4]),
    lambda h: h["a"].update(shape=[True, 12]),
    lambda h: h["a"].update(shape="34"),
    lambda h: h["a"].update(dtype="F32x"),
    lambda h: h["a"].update(dtype="F16"),
    lambda h: h.update(a=3),
    lambda h: h.update(twin=dict(h["a"])),
    lambda h: h.pop("a"),
    lambda h: h["__metadata__"].update(number=3),
])
def test_headers_that_lie(good, change):
    edit(good, change)
    with pytest.raises(CheckpointError, match="broken"):
        checkpoint.read(good)


def test_a_folder_and_other_non_files(tmp_path):
    folder = tmp_path / "model.safetensors"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        checkpoint.read(folder)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="unknown file type"):
        path = tmp_path / "model.exe"
        path.write_bytes(b"x")
        checkpoint.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path):
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="no regular file"):
        checkpoint.read(pipe)


def test_links_must_stay_inside(good, tmp_path):
    root, outside = tmp_path / "models", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    os.replace(good, outside / "good.safetensors")
    link, folder, loop = root / "link.safetensors", root / "folder", root / "loop.safetensors"
    link.symlink_to(outside / "good.safetensors")
    folder.symlink_to(outside)
    loop.symlink_to(loop)
    for path in (link, folder / "good.safetensors", root / ".." / "outside" / "good.safetensors"):
        with pytest.raises(CheckpointError, match="leads out of the model folders"):
            checkpoint.read(path, [root])
    assert same(checkpoint.read(link, [root, outside])[0], TENSORS)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(loop, [root])
    inside = root / "inside.safetensors"
    os.replace(outside / "good.safetensors", root / "real.safetensors")
    inside.symlink_to(root / "real.safetensors")
    assert same(checkpoint.read(inside, [root])[0], TENSORS)


def test_a_file_that_vanishes_or_shrinks_while_loading(good, monkeypatch):
    header = checkpoint.read_header

    def shrink(file, name):
        result = header(file, name)
        os.truncate(good, result[2] + 10)
        return result

    checkpoint.write(good, {"a": torch.zeros(1 << 20)}, {})  # more than the reader's buffer
    monkeypatch.setattr(checkpoint, "read_header", shrink)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        checkpoint.read(good)
    monkeypatch.undo()
    locate = checkpoint.locate

    def vanish(*args):
        place = locate(*args)
        place.unlink()
        return place

    monkeypatch.setattr(checkpoint, "locate", vanish)
    with pytest.raises(CheckpointError, match="could not be read"):
        checkpoint.read(good)


def test_a_failed_save_leaves_the_old_file(good, monkeypatch):
    before = good.read_bytes()
    monkeypatch.setattr(checkpoint.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(good, {"a": torch.ones(3)}, {})
    assert good.read_bytes() == before and [p.name for p in good.parent.iterdir()] == [good.name]


def test_a_save_that_is_killed_leaves_the_old_file(good):
    before = good.read_bytes()
    program = textwrap.dedent(f"""
        import importlib.util, os, signal, sys, torch
        spec = importlib.util.spec_from_file_location("checkpoint", {checkpoint.__file__!r})
        module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
        module._flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        module.write({str(good)!r}, {{"a": torch.ones(1000)}}, {{}})
    """)
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode != 0
    assert good.read_bytes() == before
    assert same(checkpoint.read(good)[0], TENSORS)


def test_an_overwritten_file_is_replaced_as_a_whole(good):
    checkpoint.write(good, {"a": torch.ones(3)}, {"k": "v"})
    assert same(checkpoint.read(good)[0], {"a": torch.ones(3)})
    assert [path.name for path in Path(good).parent.iterdir()] == [good.name]


def test_views_are_written_as_whole_tensors(tmp_path):
    source, path = torch.randn(4, 6), tmp_path / "v.safetensors"
    checkpoint.write(path, {"t": source.t(), "part": source[:2, :3], "wide": source[0].expand(3, 6)}, {})
    read, _ = checkpoint.read(path)
    assert torch.equal(read["t"], source.t()) and torch.equal(read["wide"], source[0].expand(3, 6))
