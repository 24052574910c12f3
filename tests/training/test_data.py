"""Pictures: which are used, how they are cut; the cache; the order."""


import numpy as np
import pytest
import torch
from PIL import Image

from gcfg.training.data import batches, dataset, pictures
from gcfg.training.data.contact_sheet import contact_sheet
from gcfg.training.settings import Settings, SettingsError

from .conftest import draw_pictures, encode


def source(folder, **changes):
    return dataset.Source(str(folder), **{"resolution": 64} | changes)


def counting(calls):
    def run(batch):
        calls.append(len(batch))
        return encode(batch)
    return run


def test_bad_files_are_listed_and_the_others_used(tmp_path):
    folder = draw_pictures(tmp_path / "p", 3)
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    cut = (folder / "picture_00.png").read_bytes()
    (folder / "cut.png").write_bytes(cut[:len(cut) // 2])
    Image.new("RGB", (8, 8)).save(folder / "tiny.png")
    Image.new("CMYK", (64, 64)).save(folder / "cmyk.jpg")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(folder / "deep.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (20000, 6000)).save(folder / "huge.png")
    found = dataset.cache(source(folder), tmp_path / "c", "vae", encode)
    assert [latent.file for latent in found.found] == ["picture_00.png", "picture_01.png", "picture_02.png"]
    reasons = dict(found.skipped)
    for file, word in {"notes.txt": "no picture", "broken.png": "damaged", "cut.png": "damaged", "tiny.png": "small",
                       "cmyk.jpg": "CMYK", "deep.png": "16-bit", "moving.gif": "animated",
                       "huge.png": "large"}.items():
        assert word in reasons[file]
    assert "8 files skipped" in found.report()


def test_no_folder_empty_folder_no_picture(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    for place, word in ((tmp_path / "none", "no folder"), (folder, "empty")):
        with pytest.raises(ValueError, match=word):
            dataset.cache(source(place), tmp_path / "c", "vae", encode)
    with pytest.raises(ValueError, match="no folder"):
        pictures.files("")
    (folder / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="no file in .*a.txt: no picture"):
        dataset.cache(source(folder), tmp_path / "c", "vae", encode)


def test_cache_encodes_once_and_again_what_changed(tmp_path):
    folder, calls = draw_pictures(tmp_path / "p", 4), []
    first = dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    assert len(calls) == 8  # as they are, and mirrored
    assert dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls)) == first and len(calls) == 8
    draw_pictures(folder, 1, seed=9)
    dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    assert len(calls) == 10
    dataset.cache(source(folder), tmp_path / "c", "other vae", counting(calls))
    dataset.cache(source(folder, flip=False), tmp_path / "c", "vae", counting(calls))
    assert len(calls) == 10 + 8 + 4


def test_half_written_cache_is_made_again(tmp_path):
    folder, calls = draw_pictures(tmp_path / "p", 2), []
    first = dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    whole = first.found[0].load(False)
    with open(first.found[0].path, "r+b") as file:
        file.truncate(100)
    index = next((tmp_path / "c").rglob("index.jsonl"))
    index.write_text(index.read_text() + '{"key": "cut of')
    again = dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    assert len(calls) == 6 and torch.equal(again.found[0].load(False), whole)


def test_interrupted_caching_keeps_what_is_done(tmp_path):
    folder, calls = draw_pictures(tmp_path / "p", 4), []

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls), stop)
    dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    assert len(calls) == 8


def test_latents_are_read_as_numpy_wrote_them(tmp_path):
    values = np.random.default_rng(0).standard_normal((2, 5, 8, 12)).astype(np.float16)
    path = tmp_path / "a.npy"
    dataset.store(path, np.asfortranarray(values))
    assert np.array_equal(np.load(path), values)
    latent = dataset.Latent("a.png", str(path), (4, 8, 12), masked=True, mirrored=True)
    for mirrored in (False, True):
        assert np.array_equal(latent.load(mirrored).numpy(), values[int(mirrored), :4].astype(np.float32))
    assert np.array_equal(latent.mask().numpy(), values[1, 4:].astype(np.float32))


@pytest.mark.parametrize("spoil", [lambda c: b"", lambda c: c[:9], lambda c: c[:100], lambda c: c[:-1],
                                   lambda c: c.replace(b"<f2", b"|O8"), lambda c: c.replace(b"<f2", b"<i2"),
                                   lambda c: c.replace(b"(2, 4", b"(4, 2"), lambda c: c.replace(b"(2", b"(0"),
                                   lambda c: c.replace(b"NUMPY\1", b"NUMPY\2"), lambda c: c.replace(b"(2", b"((")])
def test_damaged_latents_are_said_to_be_gone(tmp_path, spoil):
    path = tmp_path / "a.npy"
    dataset.store(path, np.zeros((2, 4, 8, 8), np.float16))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(dataset.LatentsGone, match="latents of 'a.png' cannot be read"):
        dataset.Latent("a.png", str(path), (4, 8, 8)).load(True)


def test_mirrored_copy(tmp_path):
    latents = dataset.cache(source(draw_pictures(tmp_path / "p", 1)), tmp_path / "c", "vae", encode)
    plain, mirrored = (latents.found[0].load(flip) for flip in (False, True))
    assert torch.allclose(plain.flip(2), mirrored, atol=2e-3) and not torch.equal(plain, mirrored)


@pytest.mark.parametrize("size, bucket", [((512, 512), (512, 512)), ((1000, 2000), (320, 704)),
                                          ((3000, 300), (768, 320)), ((480, 640), (448, 576))])
def test_buckets(size, bucket):
    assert pictures.size_for(*size, 512, False) == bucket
    assert pictures.size_for(*size, 512, True) == (512, 512)


def test_every_bucket_has_at_most_the_area():
    for height, width in pictures.buckets(512):
        assert height % 64 == width % 64 == 0 and 0.6 * 512**2 < height * width <= 512**2


def test_transparency_and_orientation(tmp_path):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pictures.load(tmp_path / "clear.png", 64, True).min() == 1.0
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, :256] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    picture = pictures.load(tmp_path / "turned.png", 256, False)
    assert picture.shape[0] > picture.shape[1] and picture[0].mean() > picture[-1].mean()


def test_order_shows_every_picture_once_an_epoch_and_depends_on_the_step_alone():
    shapes = [(4, 8, 8)] * 9 + [(4, 8, 16)] * 7
    order = batches.Order(shapes, 4, seed=3)
    epoch = [order.at(step) for step in range(4)]
    assert sorted(i for batch in epoch for i in batch) == list(range(16))
    assert sum(len({shapes[i] for i in batch}) == 1 for batch in epoch) >= 3
    assert epoch != [order.at(step) for step in range(4, 8)]
    assert batches.Order(shapes, 4, seed=3).at(2) == epoch[2]


def test_order_without_mixed_batches_completes_each_shape_from_itself():
    shapes = [(4, 8, 8)] * 9 + [(4, 8, 16)]
    order = batches.Order(shapes, 4, seed=3, mixed=False)
    epoch = [order.at(step) for step in range(4)]
    assert all(len(batch) == 4 and len({shapes[i] for i in batch}) == 1 for batch in epoch)
    assert {i for batch in epoch for i in batch} == set(range(10)) and sorted(sum(epoch, []))[-4:] == [9] * 4
    assert sorted({i for step in range(4, 8) for i in order.at(step)}) == list(range(10))
    one = [batches.Order([(4, 8, 8)] * 10, 4, 3, mixed) for mixed in (True, False)]
    assert all(one[0].at(step) == one[1].at(step) for step in range(6))


def test_order_with_fewer_pictures_than_the_batch():
    batch = batches.Order([(4, 8, 8)] * 3, 7, 0).at(5)
    assert len(batch) == 7 and {batch.count(i) for i in range(3)} == {2, 3}


def test_split_holds_out_at_most_a_tenth(tmp_path):
    latents = [dataset.Latent(str(i), "", (4, 8, 8), content=str(i)) for i in range(50)]
    train, held_out = dataset.split(latents, 16, 0)
    assert len(held_out) == 5 and len(train) == 45 and not {x.file for x in train} & {x.file for x in held_out}
    assert dataset.split(latents[:5], 16, 0)[1] == []


def draw_mask(picture, name, left=True):
    """White on one half."""
    with Image.open(picture) as shown:
        pixels = np.zeros((shown.height, shown.width), np.uint8)
        pixels[:, :shown.width // 2] = 255 if left else 0
        pixels[:, shown.width // 2:] = 0 if left else 255
    Image.fromarray(pixels).save(picture.with_name(name))


def test_masks_beside_pictures(tmp_path):
    folder, calls = draw_pictures(tmp_path / "p", 4, wide=1), []
    plain = dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    draw_mask(folder / "picture_00.png", "picture_00.mask.png")
    draw_mask(folder / "picture_03.png", "picture_03-masklabel.png", left=False)
    found = dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    assert "4 pictures, 2 of them with masks, 0 files skipped" in found.report() and len(calls) == 8 + 4
    assert [latent.masked for latent in found.found] == [True, False, False, True]
    for latent, before in zip(found.found, plain.found, strict=True):
        assert latent.shape == before.shape and torch.equal(latent.load(True), before.load(True))
        assert latent.mask().shape == (1, *latent.shape[1:])
    first, second, _, last = found.found
    assert (first.mask()[..., :4] == 1).all() and (first.mask()[..., 4:] == 0).all() and (second.mask() == 1).all()
    assert last.mask()[..., 0].max() == 0.0 and last.mask()[..., -1].min() == 1.0
    loader = batches.Loader(found.found, Settings(batch=4), torch.device("cpu"))
    for step in range(4):
        for group in loader.groups(step, 4):
            x0, _, _, shown = loader.samples(step, group)
            masks = dataset.masks_of(shown, x0)
            for k, latent in enumerate(shown):
                assert masks is None or torch.equal(masks[k], latent.mask())
                if latent.file == "picture_00.png":  # its right half is white in the mirror
                    assert torch.equal(x0[k], latent.load(latent.mirrored))
                    assert bool(masks[k][0, 0, -1]) == latent.mirrored
    loader.close()
    assert dataset.masks_of([second], x0) is None


def test_masks_that_cannot_be_used(tmp_path):
    folder = draw_pictures(tmp_path / "p", 4)
    Image.new("L", (64, 32), 255).save(folder / "picture_00.mask.png")
    Image.new("L", (64, 64), 0).save(folder / "picture_01.mask.png")
    Image.new("L", (64, 64), 255).save(folder / "gone.mask.png")
    found = dataset.cache(source(folder), tmp_path / "c", "vae", encode)
    reasons = dict(found.skipped)
    assert [latent.file for latent in found.found] == ["picture_02.png", "picture_03.png"]
    assert "64 x 32, but its picture is 64 x 64" in reasons["picture_00.png"]
    assert "is empty; paint white" in reasons["picture_01.png"]
    assert "its picture is not here" in reasons["gone.mask.png"]


def test_an_index_that_was_cut_loses_one_line(tmp_path):
    folder, calls = draw_pictures(tmp_path / "p", 3), []
    dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    index = next((tmp_path / "c").rglob("index.jsonl"))
    index.write_bytes(index.read_bytes()[:-30])
    draw_pictures(folder, 4)
    dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    before = len(calls)
    dataset.cache(source(folder), tmp_path / "c", "vae", counting(calls))
    assert len(calls) == before and not [line for line in index.read_text().splitlines() if line.count("{") > 1]


def test_further_resolutions(tmp_path):
    folder, calls, seen = draw_pictures(tmp_path / "p", 3, size=128), [], []
    draw_pictures(folder / "small", 1, size=40)
    (folder / "notes.txt").write_text("no picture")
    both = source(folder, others=(128, 64, 192))
    found = dataset.cache(both, tmp_path / "c", "vae", counting(calls), lambda done, total: seen.append((done, total)))
    assert [latent.shape[1] for latent in found.found] == [8] * 4 + [16] * 3 + [24] * 3
    assert dict(found.skipped)["notes.txt"] == "no picture file" and len(found.skipped) == 3
    assert "too small" in dict(found.skipped)["small/picture_00.png at 128"]
    assert "4 pictures, 3 files skipped" in found.report() and seen[-1] == (15, 15) and seen == sorted(seen)
    alone = dataset.cache(source(folder, resolution=128), tmp_path / "c", "vae", counting(calls))
    assert alone.found == found.found[4:7]
    assert len(calls) == 20  # each resolution has a cache of its own
    training, held_out = dataset.split([*found.found] * 4, 16, 0)
    assert not {x.content for x in training} & {x.content for x in held_out}
    page = contact_sheet(both, found)
    assert page.shape[2] == 3
    with pytest.raises(SettingsError, match="resolutions has '100'; give multiples of 64"):
        Settings(resolutions="128, 100")
