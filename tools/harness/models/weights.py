"""Seeded random weights under which an untrained network behaves like a denoiser."""

import math
import zlib
from collections.abc import Iterable

import torch

# What writes to the output of the last block.
_ENDS = ("0.skip_connection", "0.out_layers.3", "1.proj_out")


def generator(seed: int, name: str = "") -> torch.Generator:
    """A generator for one tensor: the same for a seed and a name, whatever was drawn before."""
    return torch.Generator().manual_seed((seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63)


def gain(name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation that keeps activations near one: 1/sqrt(fan in), small for vectors."""
    return 1.0 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.05


def is_scale(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor multiplies a normalised activation, so that it lies around one."""
    return len(shape) == 1 and name.endswith("weight")


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The weight ``name``: normal with its gain, around one for the scales of normalisation layers."""
    noise = torch.randn(shape, generator=generator(seed, name)) * gain(name, tuple(shape))
    return noise + 1.0 if is_scale(name, tuple(shape)) else noise


def rewritten(names: Iterable[str]) -> list[str]:
    """The tensors of a UNet that ``pass_input_through`` writes to."""
    names = list(names)
    top = _last_block(names)
    prefixes = ("input_blocks.0.0.", "out.0.", "out.2.", *(f"{top}.{name}." for name in _ENDS))
    return [name for name in names if name.startswith(prefixes)]


def pass_input_through(weights: dict[str, torch.Tensor], effect: float = 0.3) -> None:
    """Rewrite the ends of a UNet so that its output is its normalised input plus ``effect`` of the random network.

    A network that predicts unrelated noise leaves the latent at the noise of the first step, fifteen times too large.
    One that predicts its input, which at high noise is what a trained eps model does, leads to a latent around one.
    The input travels in pairs of channels +x and -x, because silu(x) - silu(-x) = x: from the first convolution over
    the last skip connection, past the last block, to the output.
    """
    first, last = weights["input_blocks.0.0.weight"], weights["out.2.weight"]
    width, channels = first.shape[0], last.shape[0]
    pairs = width // (4 * 2 * channels)
    carried = 2 * pairs * channels
    for name in rewritten(weights):
        if not name.startswith("out."):
            weights[name][:carried] = 0.0
    skip = weights[f"{_last_block(weights)}.0.skip_connection.weight"]
    last.mul_(effect)[:, :carried] = 0.0
    for k in range(carried):
        channel, sign = k // 2 % channels, 1.0 - 2.0 * (k % 2)
        first[k, channel, 1, 1] = sign
        skip[k, skip.shape[1] - width + k] = 1.0
        last[channel, k, 1, 1] = sign / pairs
    weights["out.0.weight"].fill_(1.0)
    weights["out.0.bias"].zero_()


def _last_block(names: Iterable[str]) -> str:
    return f"output_blocks.{max(int(name.split('.')[1]) for name in names if name.startswith('output_blocks.'))}"
