"""LyCORIS forms of a change of weights (arXiv 2309.14859) by the host's weight adapters, trained as they are saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from comfy.weight_adapter import adapter_maps
from torch import Tensor, nn
from torch.nn import functional as F

from ....training.randomness import seed_of
from ....training.weights.low_rank import Added

KINDS = ("LoHa", "LoKr")
"""Those that add to a weight: two low-rank products multiplied element by element, and a Kronecker product."""


class Lycoris(Added):
    """Weight adapters of the host.

    Args:
        network: whose layers get them.
        kind: one of ``KINDS``.
        rank: of LoHa; of LoKr about the size of the smaller factor.
        seed: of the initial values.
        device: of the adapters.
    """

    def __init__(self, network: nn.Module, kind: str, rank: int, seed: int, device: torch.device):
        super().__init__(network)
        self.adapters = {}
        for name, layer in self.layers.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(seed, kind, name))
                shaped = torch.empty(layer.weight.shape)
                adapter = adapter_maps[kind].create_train(shaped, rank=rank, alpha=float(rank)).to(device)
            self.adapters[name] = adapter
            self.pairs |= {f"{name}/{part}": parameter for part, parameter in adapter.named_parameters()
                           if parameter.requires_grad}

    def added(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        kind = x.device.type
        with torch.autocast(kind, enabled=False):
            delta = self.adapters[name](torch.zeros((), device=x.device).expand(layer.weight.shape))
        if not torch.is_autocast_enabled(kind):
            delta = delta.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, delta, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, delta)

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file, float32 on the CPU, by "<layer>.<part>", of weights under the names of ``pairs``."""
        return {f"{name}.{part}": trained.get(f"{name}/{part}", value).detach().to("cpu", torch.float32, copy=True)
                for name, adapter in self.adapters.items() for part, value in adapter.state_dict().items()}
