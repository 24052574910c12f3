"""Samples are made ahead of their step; latents are read once where memory has room for them."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from gcfg.training.data import batches, dataset
from gcfg.training.settings import Settings

from .conftest import draw_pictures, encode


@pytest.fixture
def latents(tmp_path):
    source = dataset.Source(str(draw_pictures(tmp_path / "p", 8)), 64)
    return dataset.cache(source, tmp_path / "latents", "averaging", encode).found


@pytest.fixture
def make(latents):
    """Loaders of batches of four."""
    made = []

    def make():
        made.append(batches.Loader(latents, Settings(batch=4), torch.device("cpu")))
        return made[-1]
    yield make
    for loader in made:
        loader.close()


def samples(loader, steps):
    """Latents, noise and levels of some steps."""
    return list(chain.from_iterable(loader.samples(step, loader.groups(step, 4)[0])[:3] for step in steps))


def test_the_next_step_is_read_while_this_one_is_computed(make):
    loader, expected = make(), samples(make(), [1])
    samples(loader, [0])
    assert len([reading.result(timeout=60) for reading in loader._reading[1].values()]) == 4
    for latent in loader.latents:
        Path(latent.path).unlink()
    assert all(map(torch.equal, samples(loader, [1]), expected))


def test_latents_that_were_read_are_not_read_again(make, latents):
    loader, epochs = make(), range(6)  # an epoch is two steps
    expected = samples(make(), epochs)
    samples(loader, [0, 1])
    for latent in latents:
        Path(latent.path).unlink()
    assert all(map(torch.equal, samples(loader, epochs), expected))


@pytest.mark.parametrize("room", [0, 2.5])
def test_no_more_latents_stay_in_memory_than_have_room(make, latents, monkeypatch, room):
    expected = samples(make(), range(4))
    monkeypatch.setattr(batches, "IN_MEMORY", room * latents[0].read().nbytes)
    loader = make()
    assert all(map(torch.equal, samples(loader, range(4)), expected))
    for latent in latents:
        Path(latent.path).unlink()
    with pytest.raises(dataset.LatentsGone, match="cannot be read"):
        samples(loader, range(4, 10))
