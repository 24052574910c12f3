"""A small run without a host: drawn pictures, an autoencoder that averages, a network of two convolutions."""

import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from gcfg.training.data import dataset
from gcfg.training.losses.objectives import DiffusionLoss
from gcfg.training.memory import plan
from gcfg.training.run import continuation, distributed, state
from gcfg.training.run.folder import RunFolder
from gcfg.training.run.loop import Training
from gcfg.training.run.task import Task
from gcfg.training.settings import Settings
from gcfg.training.weights import optimizers


def draw_pictures(folder, count=12, size=64, wide=0, seed=0):
    """Discs on gradients; the last ``wide`` are twice as wide as high."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for k in range(count):
        y, x = np.mgrid[0:size, 0:size * (2 if k >= count - wide else 1)] / size
        inside = (x - random.uniform(0.3, 0.7)) ** 2 + (y - 0.5) ** 2 < 0.05
        pixels = np.stack([x / 2, np.where(inside, 0.9, 0.3), np.full_like(x, random.uniform())], axis=-1)
        Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"picture_{k:02}.png")
    return folder


def encode(pictures):
    """Four channels at an eighth of the size."""
    x = F.avg_pool2d(pictures.movedim(-1, 1), 8)
    return torch.cat([x, x.mean(1, keepdim=True)], dim=1) * 4.0 - 2.0


class Network(nn.Module):
    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.level = nn.Linear(1, 16)
        self.to(dtype)

    def forward(self, x, sigma):
        kind = self.first.weight.dtype
        x = (x / (1 + sigma**2).sqrt().view(-1, 1, 1, 1)).to(kind)
        return self.last(F.silu(self.first(x) + self.level(sigma[:, None].log().to(kind))[:, :, None, None]))


def noised(sigma, noise, x0):
    return x0 + sigma.view(-1, 1, 1, 1) * noise


def denoised(sigma, output, x):
    return x - sigma.view(-1, 1, 1, 1) * output


SIGMAS = torch.logspace(-1, 1, 100)


@pytest.fixture
def pictures(tmp_path):
    return draw_pictures(tmp_path / "pictures")


@pytest.fixture
def make(tmp_path, pictures):
    """make(folder name, watch, network, **settings) -> a ``Training`` that has resumed."""
    def build(name="run", watch=None, network=None, losses=None, **changes):
        values = {"resolution": 64, "batch": 4, "target_steps": 8, "learning_rate": 1e-2, "held_out_every": 4,
                  "save_every": 3, "preview_every": 0, "ema_decay": 0.9, "held_out": 1}
        settings = Settings(**values | changes)
        source = dataset.Source(str(pictures), settings.resolution, settings.crop == "square", settings.flip)
        latents = dataset.cache(source, tmp_path / "latents", "averaging", encode).found
        network = network or Network(dtype=torch.bfloat16 if settings.precision == "bfloat16" else torch.float32)
        loss = DiffusionLoss(network, noised, denoised, SIGMAS, settings.min_snr)
        losses = losses or (lambda x0, noise, level, pictures: loss(x0, noise, level))
        task = Task(dict(network.named_parameters()), losses)
        folder = RunFolder(tmp_path / "runs" / name)
        folder.begin(settings)
        newest = state.latest(folder.states)
        before = newest.notes if newest else {}
        training, held_out = dataset.split(latents, settings.held_out, settings.seed, before.get("held_out", ()))
        wanted = plan(settings, None, optimizers.has_8_bit(), distributed.world())
        planned = continuation.resolved(wanted, settings, before)
        run = Training(task, training, held_out, settings, planned, folder, watch)
        run.resume(newest)
        return run
    return build


@pytest.fixture
def little_space():
    """little_space(bytes): within, every write beyond that many bytes of a file fails, as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(most):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
    return limit
