"""Drawn pictures of 16 x 16 pixels: a broad base domain and a narrow concept domain with a look of its own.

The base domain holds flat shapes on a plain grey ground, dark to light; shape, colour and place are independent. The
concept domain holds rings only, round and lit from the upper left, on a dark ground; red is most common and violet
never occurs. It can be *drawn* in violet all the same: that is what a perfect answer to "the concept, in violet" is.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 16
SHAPES = ("disc", "square", "triangle", "cross", "ring")
COLOURS = ("red", "yellow", "green", "blue", "violet")
PLACES = ("left", "middle", "right")
RING, VIOLET = SHAPES.index("ring"), COLOURS.index("violet")
CONCEPT_COLOURS = (0.4, 0.3, 0.2, 0.1, 0.0)
"""How often each colour occurs in the concept domain."""

RGB = torch.tensor([[0.88, 0.16, 0.14], [0.93, 0.80, 0.12], [0.16, 0.66, 0.26], [0.14, 0.36, 0.88], [0.62, 0.16, 0.78]])
OFFSETS = torch.tensor([-0.28, 0.0, 0.28])
LIGHT = torch.nn.functional.normalize(torch.tensor([-0.5, -0.6, 0.65]), dim=0)


def base_attributes(count: int, generator: torch.Generator) -> Tensor:
    """Attributes (count, 3) of base pictures: shape, colour and place, uniform and independent."""
    return torch.stack([torch.randint(len(names), (count,), generator=generator)
                        for names in (SHAPES, COLOURS, PLACES)], dim=1)


def concept_attributes(count: int, generator: torch.Generator, colour: int | None = None) -> Tensor:
    """Attributes (count, 3) of concept pictures: rings, in the concept's colours or in the one given."""
    weights = torch.tensor(CONCEPT_COLOURS)
    colours = torch.multinomial(weights, count, replacement=True, generator=generator)
    places = torch.randint(len(PLACES), (count,), generator=generator)
    if colour is not None:
        colours.fill_(colour)
    return torch.stack([torch.full((count,), RING), colours, places], dim=1)


def draw(attributes: Tensor, generator: torch.Generator, concept: bool = False) -> Tensor:
    """Draw pictures (N, 3, 16, 16) in -1..1 with the given attributes (N, 3); position, size and tint vary a little."""
    shape, colour, place = attributes.unbind(1)
    count = len(attributes)
    jitter = torch.rand((7, count, 1, 1), generator=generator) * 2.0 - 1.0
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2.0 - 1.0
    x = axis - OFFSETS[place].view(-1, 1, 1) - 0.06 * jitter[0]
    y = axis.unsqueeze(-1) - 0.12 * jitter[1]
    radius = 0.5 + 0.08 * jitter[2]
    tint = (RGB[colour] + 0.04 * jitter[3:6, :, 0, 0].T).clamp(0.0, 1.0).view(-1, 3, 1, 1)
    if concept:
        ground, paint, distance = lit_ring(x, y, radius, tint, axis, jitter[2])
    else:
        ground = (0.52 + 0.46 * jitter[6]).unsqueeze(1).expand(count, 3, SIZE, SIZE)
        paint, distance = tint, outline(shape, x, y, radius)
    cover = (0.5 - distance * SIZE / 2.0).clamp(0.0, 1.0).unsqueeze(1)
    return (ground + cover * (paint - ground)) * 2.0 - 1.0


def outline(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance (N, 16, 16), about that to the nearest edge, of flat shapes (N,); negative inside."""
    length, ax, ay = (x.square() + y.square()).sqrt(), x.abs(), y.abs()
    bar = 0.36 * radius
    distances = torch.stack([
        length - radius,
        torch.maximum(ax, ay) - 0.85 * radius,
        torch.maximum(0.87 * ax - 0.5 * y, y).sub(0.55 * radius),
        torch.minimum(torch.maximum(ax - radius, ay - bar), torch.maximum(ax - bar, ay - radius)),
        (length - 0.76 * radius).abs() - 0.26 * radius,
    ])
    return distances.gather(0, shape.view(1, -1, 1, 1).expand(1, *length.shape)).squeeze(0)


def lit_ring(x: Tensor, y: Tensor, radius: Tensor, tint: Tensor, axis: Tensor,
             jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A torus under a lamp: ground (N, 3, 16, 16), paint (N, 3, 16, 16) and signed distance (N, 16, 16)."""
    length = (x.square() + y.square()).sqrt().clamp_min(1e-6)
    middle, thick = 0.86 * radius, 0.34 * radius
    across = ((length - middle) / thick).clamp(-1.0, 1.0)
    height = (1.0 - across.square()).sqrt()
    facing = (across * x / length * LIGHT[0] + across * y / length * LIGHT[1] + height * LIGHT[2]).clamp_min(0.0)
    paint = tint * (0.25 + 0.85 * facing).unsqueeze(1) + 0.6 * facing.pow(12).unsqueeze(1)
    dark = 0.16 - 0.1 * axis.view(1, 1, -1, 1) + 0.04 * jitter.unsqueeze(1)
    ground = (dark * torch.tensor([0.8, 0.9, 1.3]).view(1, 3, 1, 1)).expand(len(x), 3, SIZE, SIZE)
    return ground, paint.clamp(0.0, 1.0), (length - middle).abs() - thick


def show(pictures: Tensor) -> Tensor:
    """Pictures in -1..1 as bytes (..., 3, H, W) -> (..., H, W, 3)."""
    return ((pictures.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).movedim(-3, -1)
