"""The contact sheet and repeats."""

import pytest

from gcfg.training.data import dataset
from gcfg.training.data.contact_sheet import ROW, WIDTH, by_size, contact_sheet
from gcfg.training.settings import Settings, SettingsError

from .conftest import draw_pictures, encode


def test_shows_every_size_and_what_was_skipped(tmp_path):
    folder = draw_pictures(tmp_path / "p", 9, size=192, wide=3)
    source = dataset.Source(str(folder), 256)
    (folder / "notes.txt").write_text("text")
    latents = dataset.cache(source, tmp_path / "c", "vae", encode)
    sizes = {size: len(members) for size, members in by_size(latents.found).items()}
    assert sum(sizes.values()) == 9 and list(sizes.values()) == sorted(sizes.values(), reverse=True) and len(sizes) == 2
    (folder / "picture_00.png").unlink()
    page = contact_sheet(source, latents)
    assert page.shape[1] == WIDTH and page.shape[0] > len(sizes) * ROW and 50 < page.mean() < 255


def test_repeats(tmp_path):
    names = ("a.png", "near/b.png", "far/c.png", "far/deep/d.png")
    latents = [dataset.Latent(name, "", (4, 8, 8), content=name) for name in names]
    times = Settings(repeats="near = 3, far=0").times()
    assert [latent.file for latent in dataset.repeated(latents, times)] == ["a.png", *["near/b.png"] * 3]
    with pytest.raises(ValueError, match="'nowhere', and no picture"):
        dataset.repeated(latents, {"nowhere": 2})
    with pytest.raises(SettingsError, match="repeats has 'near'"):
        Settings(repeats="near")
