"""``python -m benchmarks.pictures.train_vae``: encoder and decoder together, then the decoder alone on kept latents."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gcfg.training.randomness import generator

from . import data
from .loop import Plan, Stage, averaged
from .vae import Autoencoder, Decoder, Encoder

SEED = 11
JOINT = Plan(steps=1500, rate=2e-3, weight_decay=1e-4, decay=0.5)
DECODER = Plan(steps=1450, rate=1.2e-3, weight_decay=1e-4, decay=0.7)
BATCH = 16
LATENT_NOISE = 0.06
HEADS_SHARE = 0.85
"""Share of a batch that shows heads; the rest is anything, so that the latents are of general use."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after these, to go on at the next call")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    if Stage(settings.work / "vae", model := Autoencoder(), JOINT).run(joint(model, settings.work), settings.minutes):
        decoder = Decoder().to(memory_format=torch.channels_last)
        stage = Stage(settings.work / "decoder", decoder, DECODER)
        if stage.step == 0:
            start_from(stage, {name.removeprefix("decoder."): value for name, value in
                               averaged(settings.work / "vae").items() if name.startswith("decoder.")})
        stage.run(decoder_alone(decoder, settings.work), settings.minutes)


def start_from(stage: Stage, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            stage.parameters[name].copy_(value)
            stage.average[name].copy_(value)


def joint(model: Autoencoder, work: Path):
    """The loss of step i for both, on flipped and shifted pictures; latents are drawn to mean 0 and deviation 1."""
    pictures, heads = load(work)
    model.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        source = generator(SEED, "vae", step)
        batch = pictures[choose(heads, len(pictures), source)]
        flip = torch.rand(1, generator=source).item() < 0.5
        shift = torch.randint(-3, 4, (2,), generator=source).tolist()
        batch = torch.roll(batch.flip(3) if flip else batch, shift, (2, 3)).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encoder(batch).float()
            noise = torch.randn(latents.shape, generator=source)
            drawn = model.decoder(latents + LATENT_NOISE * noise).float()
        size = (latents.mean((0, 2, 3)).square() + (latents.std((0, 2, 3)) - 1).square()).mean()
        return difference(drawn, batch) + 0.05 * size

    return loss_of


def decoder_alone(decoder: Decoder, work: Path):
    """The loss of step i for the decoder on latents of the trained encoder."""
    pictures, heads = load(work)
    pictures = torch.cat([pictures, pictures.flip(3)])
    latents = encode(encoder_of(work), pictures)

    def loss_of(step: int) -> Tensor:
        source = generator(SEED, "decoder", step)
        index = choose(heads, len(pictures) // 2, source)
        index = index + (len(pictures) // 2) * (torch.rand(BATCH, generator=source) < 0.5)
        noisy = latents[index] + LATENT_NOISE * torch.randn(BATCH, *latents.shape[1:], generator=source)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = decoder(noisy.contiguous(memory_format=torch.channels_last)).float()
        return difference(drawn, pictures[index])

    return loss_of


def load(work: Path) -> tuple[Tensor, Tensor]:
    """All pictures (N, 3, 64, 64) and the indices of those that show heads."""
    pictures, rows = data.load(work)
    return pictures, torch.tensor([i for i, row in enumerate(rows) if row.head])


def choose(heads: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Indices of a batch: ``HEADS_SHARE`` of them heads."""
    head = heads[torch.randint(len(heads), (BATCH,), generator=source)]
    other = torch.randint(count, (BATCH,), generator=source)
    return torch.where(torch.rand(BATCH, generator=source) < HEADS_SHARE, head, other)


def difference(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Absolute and squared error and that of the edges; small shapes of another colour than around them count more."""
    contrast = (wanted - F.avg_pool2d(wanted, 11, 1, 5, count_include_pad=False)).abs().amax(1, keepdim=True)
    weight = 1 + 4 * contrast
    error = drawn - wanted
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    return (weight * (error.abs() + 2 * error.square())).mean() + 0.5 * edges


def encoder_of(work: Path) -> Encoder:
    encoder = Encoder()
    encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in averaged(work / "vae").items()
                             if name.startswith("encoder.")})
    return encoder.requires_grad_(False)


def encode(encoder: Encoder, pictures: Tensor) -> Tensor:
    """(N, 4, 8, 8), in float32."""
    with torch.no_grad():
        return torch.cat([encoder(part) for part in pictures.split(64)])


if __name__ == "__main__":
    main()
