"""Bad files: each is named and skipped, none ends a folder, and nothing about them is remembered."""

import io
import random
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gcfg.training.data import dataset, pictures

from .conftest import draw_pictures, encode

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "gif": "GIF", "avif": "AVIF",
           "jfif": "JPEG", "jpeg": "MPO", "tiff": "TIFF"}


def cached(folder, tmp_path, encoder=encode, name="vae"):
    return dataset.cache(dataset.Source(str(folder), 64), tmp_path / "c", name, encoder)


def test_errors_are_tried_again(tmp_path):
    folder, calls = draw_pictures(tmp_path / "p", 3), []

    def sometimes(batch):
        calls.append(1)
        return encode(batch) * (float("nan") if len(calls) == 1 else 1.0)
    first = cached(folder, tmp_path, sometimes)
    assert len(first.found) == 2 and "not finite" in first.skipped[0][1]
    assert len(cached(folder, tmp_path, sometimes).found) == 3


def test_a_file_that_cannot_be_read_now_is_used_later(tmp_path, monkeypatch):
    folder = draw_pictures(tmp_path / "p", 3)
    original = pictures.opened

    def hiccup(path):
        if path.name == "picture_01.png":
            raise TimeoutError(110, "Connection timed out")
        return original(path)
    monkeypatch.setattr(pictures, "opened", hiccup)
    assert [file for file, _ in cached(folder, tmp_path).skipped] == ["picture_01.png"]
    monkeypatch.undo()
    assert cached(folder, tmp_path).skipped == ()


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyError, ZeroDivisionError, AssertionError])
def test_any_exception_of_a_decoder_is_that_files(tmp_path, monkeypatch, error):
    folder = draw_pictures(tmp_path / "p", 2)
    original = pictures.upright_size

    def failing(picture):
        if Path(picture.filename).name == "picture_00.png":
            raise error("odd")
        return original(picture)
    monkeypatch.setattr(pictures, "upright_size", failing)
    found = cached(folder, tmp_path)
    assert len(found.found) == 1 and found.skipped[0] == (
        "picture_00.png", f"damaged or unreadable ({error.__name__}: {error('odd')})")


def test_an_orientation_that_is_text(tmp_path):
    folder = draw_pictures(tmp_path / "p", 2)
    directory = struct.pack("<HHHI4sI", 1, 0x0112, 2, 4, b"le\0\0", 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory
    Image.new("RGB", (64, 64)).save(folder / "odd.jpg", exif=exif)
    found = cached(folder, tmp_path)
    assert len(found.found) == 2 and "odd.jpg" in dict(found.skipped)


def test_too_large_is_not_damaged(tmp_path):
    folder = draw_pictures(tmp_path / "p", 1)
    Image.new("1", (20000, 20000)).save(folder / "huge.png")
    assert "too large" in dict(cached(folder, tmp_path).skipped)["huge.png"]


def test_links_are_followed_once(tmp_path):
    folder, other = draw_pictures(tmp_path / "p", 2), draw_pictures(tmp_path / "other", 3, seed=5)
    (folder / "more").symlink_to(other)
    (other / "back").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = cached(folder, tmp_path)
    assert len(found.found) == 5 and [file for file, _ in found.skipped] == ["gone.png"]


def test_heic_says_what_to_install_and_is_read_with_it(tmp_path, monkeypatch):
    folder = draw_pictures(tmp_path / "p", 1)
    content = (folder / "picture_00.png").read_bytes()
    (folder / "phone.HEIC").write_bytes(content)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install pillow-heif" in dict(cached(folder, tmp_path).skipped)["phone.HEIC"]
    opener = types.SimpleNamespace(HeifImageFile=lambda path: Image.open(io.BytesIO(Path(path).read_bytes())))
    monkeypatch.setitem(sys.modules, "pillow_heif", opener)
    assert len(cached(folder, tmp_path).found) == 2


def test_real_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    folder = draw_pictures(tmp_path / "p", 1)
    heif.from_pillow(Image.open(folder / "picture_00.png")).save(folder / "phone.heic")
    found = cached(folder, tmp_path)
    assert len(found.found) == 2 and torch.allclose(*(latent.load(False) for latent in found.found), atol=0.3)


def originals():
    """A picture in each format: (ending, bytes)."""
    y, x = np.mgrid[0:48, 0:64]
    picture = Image.fromarray(np.stack([4 * x, 5 * y, x + y], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    found = []
    for ending, kind in FORMATS.items():
        buffer = io.BytesIO()
        options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
        if ending == "tiff":
            options["compression"] = "tiff_lzw"
        try:
            picture.save(buffer, format=kind, **options)
        except (KeyError, OSError):  # a Pillow without this format
            continue
        found.append((ending, buffer.getvalue()))
    return found


def damaged(content, source):
    """The content with bytes changed, left out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(source.choice([1, 1, 2, 5, 20])):
        at = source.randrange(len(content))
        match source.randrange(5):
            case 0:
                content[at] = source.randrange(256)
            case 1:
                content[at] ^= 1 << source.randrange(8)
            case 2:
                del content[at:at + source.randrange(1, 9)]
            case 3:
                content[at:at] = content[at:at + source.randrange(1, 9)]
            case 4 if len(content) > 64 and source.random() < 0.2:
                del content[at:]
        if not content:
            break
    return bytes(content)


def fuzz(folder, count, seed):
    """Damage ``count`` files; how many could be loaded all the same. Any other error than BadPicture escapes."""
    source, loaded, kinds = random.Random(seed), 0, originals()
    for k in range(count):
        ending, content = kinds[k % len(kinds)]
        path = folder / f"fuzz.{ending}"
        path.write_bytes(damaged(content, source))
        try:
            picture = pictures.load(path, 64, bool(k % 2))
            assert picture.ndim == 3 and bool(torch.isfinite(picture).all())
            loaded += 1
        except pictures.BadPicture as error:
            assert len(str(error)) <= 200
    return loaded


def test_damaged_bytes_never_end_a_folder(tmp_path):
    assert 20 < fuzz(tmp_path, 200, seed=0) < 200


@pytest.mark.fuzz
def test_twenty_thousand_damaged_files_never_end_a_folder(tmp_path):
    assert 2000 < fuzz(tmp_path, 20_000, seed=1) < 20_000
