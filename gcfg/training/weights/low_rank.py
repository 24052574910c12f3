"""LoRA on every linear and convolution layer of a network (arXiv 2106.09685), trained directly and exported exactly."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...nulltext.formats.adapter import Adapter
from ..randomness import generator


class Added(ABC):
    """What hooks add to the outputs of all linear and 2-d convolution layers of a network, which is frozen.

    Attributes:
        layers: these layers by name.
        pairs: what is trained, by "<layer>/<part>".
    """

    def __init__(self, network: nn.Module):
        network.requires_grad_(False)
        self.layers = {name: layer for name, layer in network.named_modules()
                       if isinstance(layer, nn.Linear | nn.Conv2d)}
        self.pairs: dict[str, nn.Parameter] = {}
        self._active = True
        self._handles = [layer.register_forward_hook(self._adding(name)) for name, layer in self.layers.items()]

    @abstractmethod
    def added(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """What is added to a layer's output for its input x."""

    def _adding(self, name: str):
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + self.added(name, layer, args[0]) if self._active else output
        return hook

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within, the network is as it was."""
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def detach(self) -> None:
        """Leave the network as it was."""
        while self._handles:
            self._handles.pop().remove()


class LowRank(Added):
    """Pairs y = W x + up (down x).

    ``up`` (out, rank) starts at zero, ``down`` (rank, in, *kernel) as a layer of that shape would.

    Args:
        network: whose layers get pairs.
        rank: of every pair, at most what the layer has.
        seed: of the initial values.
        device: of the pairs.
    """

    def __init__(self, network: nn.Module, rank: int, seed: int, device: torch.device | str = "cpu"):
        super().__init__(network)
        for name, layer in self.layers.items():
            shape = layer.weight.shape
            size = min(rank, shape[0], shape[1:].numel())
            down = torch.empty((size, *shape[1:]))
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator(seed, "LoRA", name))
            self.pairs[f"{name}/up"] = nn.Parameter(torch.zeros((shape[0], size), device=device))
            self.pairs[f"{name}/down"] = nn.Parameter(down.to(device))

    def added(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        up, down = self.pairs[f"{name}/up"], self.pairs[f"{name}/down"]
        if not torch.is_autocast_enabled(x.device.type):
            up, down = up.to(x.dtype), down.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
            return F.conv2d(low, up[:, :, None, None])
        return F.linear(F.linear(x, down), up)


def to_adapter(pairs: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Adapter:
    """The adapter of trained pairs ("<layer>/up", "<layer>/down"), float32 on the CPU."""
    layers = [name.removesuffix("/up") for name in pairs if name.endswith("/up")]
    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float32, copy=True)
    return Adapter({layer: (plain(pairs[f"{layer}/up"]), plain(pairs[f"{layer}/down"])) for layer in layers}, {},
                   {block: plain(feature) for block, feature in features.items()})
