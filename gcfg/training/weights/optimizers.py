"""Optimizers for weights in float32 or bfloat16.

Weights in float32 share an optimizer. Those in bfloat16 are updated in groups, so that a step needs the float32 form of
a few of them at a time only; in a fused backward pass a group is updated as soon as its gradients are there.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..randomness import seed_of
from ..settings import SettingsError
from . import shards
from .rounding import stochastic_round_


def has_8_bit() -> bool:
    """True if bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


PACKAGES = {"adamw 8-bit": ("bitsandbytes", "bitsandbytes"), "lion": ("lion_pytorch", "lion-pytorch"),
            "prodigy": ("prodigyopt", "prodigyopt")}
"""Optimizers of other packages: module, and name for pip."""
BYTES = {"adamw": 8.0, "adamw 8-bit": 2.1, "adafactor": 0.1, "lion": 4.0, "prodigy": 16.0}
"""About how much each keeps for a weight."""
ELEMENTWISE = ("adamw", "lion")
"""Those to which it makes no difference how weights are cut."""
TOGETHER = 2**24
"""Weights in bfloat16 that are updated at once, in float32."""


def make(kind: str, parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer; its rate is set before every step.

    Args:
        kind: "adamw" (arXiv 1711.05101), "adamw 8-bit" (arXiv 2110.02861), "adafactor" (arXiv 1804.04235), "lion"
            (arXiv 2302.06675) or "prodigy" (arXiv 2306.06101).
        parameters: float32.

    Raises:
        ImportError: its package is not installed.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay, fused=True)
    if kind == "adafactor":  # with eps2 = 1 the rate is absolute, as AdamW's is, not relative to the weight's size
        return torch.optim.Adafactor(parameters, lr=0.0, weight_decay=weight_decay, eps=(None, 1.0))
    module, name = PACKAGES[kind]
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"the optimizer '{kind}' needs the package {name}, which is not installed: pip install "
                          f"{name}, or choose the optimizer 'adamw' or 'adafactor'.") from error
    if kind == "adamw 8-bit":
        return package.optim.AdamW8bit(parameters, lr=0.0, weight_decay=weight_decay)
    optimizer = {"lion": "Lion", "prodigy": "Prodigy"}[kind]
    made = getattr(package, optimizer)(parameters, lr=1.0)
    made.param_groups[0]["weight_decay"] = weight_decay  # Prodigy prints a line if it is given at once
    return made


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over gradients, float32."""
    return torch.linalg.vector_norm(gradient_norms(gradients))


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norms of n gradients, (n,), float32."""
    return torch.stack(torch._foreach_norm(gradients, 2, torch.float32))


def as_matrix(weight: Tensor) -> Tensor:
    """A view of a convolution's weight (out, in, h, w) as (out, in * h * w), which Adafactor can factor well."""
    return weight.view(len(weight), weight.shape[1:].numel()) if weight.ndim > 2 else weight


class Optimizer:
    """Steps over named weights; deterministic for its seed and the number of the step.

    Args:
        parameters: float32 or bfloat16; of those that are cut this process's rows are updated.
        kind, weight_decay: see ``make``.
        seed: of the stochastic rounding.
        apart: whether the groups are updated by themselves, each no larger than the largest weight.

    Raises:
        SettingsError: an optimizer that must see whole weights, or all of them at once, and cannot.
        ImportError: see ``make``.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: str, weight_decay: float, seed: int,
                 apart: bool = False):
        self.parameters, self.kind, self.seed = parameters, kind, seed
        if kind == "prodigy" and (apart or any(p.dtype != torch.float32 for p in parameters.values())):
            raise SettingsError("prodigy finds one rate for all weights, which must be float32 and updated together: "
                                "set precision to float32 and switch fused_backward off, or choose another optimizer.")
        if kind not in ELEMENTWISE and any(map(shards.is_cut, parameters.values())):
            raise SettingsError(f"with shard every process updates its own rows of the weights, but {kind} must see "
                                f"them whole: set optimizer to {' or '.join(ELEMENTWISE)} in a new run.")
        self.masters = {name: _master(parameter) for name, parameter in parameters.items()}
        self.groups = [(names, make(kind, [self.masters[name] for name in names], weight_decay))
                       for names in _together(parameters, apart)]
        self.optimizers = {name: optimizer for names, optimizer in self.groups for name in names}

    def step(self, number: int, rate: float) -> None:
        """Update all weights by their gradients, and drop the gradients."""
        for group in range(len(self.groups)):
            self.step_group(group, number, rate)

    @torch.no_grad()
    def step_group(self, group: int, number: int, rate: float) -> None:
        """Update the weights of one of the ``groups`` by their gradients, and drop these."""
        names, optimizer = self.groups[group]
        apart = [name for name in names if self.parameters[name].grad is not None
                 and self.masters[name] is not self.parameters[name]]
        for name in apart:
            parameter, master = self.parameters[name], self.masters[name]
            if parameter.dtype != torch.float32:
                master.data = as_matrix(shards.own(parameter)).float()
            master.grad = as_matrix(shards.own(parameter.grad).contiguous()).to(master.dtype)
            parameter.grad = None
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for name in apart:
            parameter, master = self.parameters[name], self.masters[name]
            if parameter.dtype != torch.float32:
                place = self.seed, "round", number, name, shards.part_of(parameter)
                generator = torch.Generator(parameter.device).manual_seed(seed_of(*place))
                rows = shards.own(parameter)
                rows.copy_(stochastic_round_(master.data, generator).view_as(rows))
                master.data = torch.empty(0, device=parameter.device)
            master.grad = None
        for name in names:
            self.parameters[name].grad = None

    def size(self) -> int:
        """About how many bytes its state has once every weight was updated."""
        return round(BYTES[self.kind] * sum(parameter.numel() for parameter in self.parameters.values()))

    def tensors(self) -> dict[str, Tensor]:
        """The state by "<weight>/<value>", live; "/<value>" for what Prodigy has found out about all weights.

        Of weights that are cut it is that of this process's rows.
        """
        found = {f"{name}/{key}": torch.as_tensor(value) for name, optimizer in self.optimizers.items()
                 for key, value in optimizer.state.get(self.masters[name], {}).items()}
        return found | {f"/{key}": torch.tensor(float(self.groups[0][1].param_groups[0][key]), dtype=torch.float64)
                        for key in self._common()}

    def _common(self) -> tuple[str, ...]:
        return ("d", "d_max", "d_numerator", "k") if self.kind == "prodigy" else ()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave, whole."""
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if not name:
                self.groups[0][1].param_groups[0][key] = float(value)
                continue
            counter = value.ndim == 0 and value.dtype == torch.int64  # some optimizers count in plain integers
            parameter = self.parameters[name]
            put_back = int(value) if counter else shards.rows_of(value, parameter).to(parameter.device, copy=True)
            self.optimizers[name].state[self.masters[name]][key] = put_back


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """What the optimizer sees of a weight: itself, or a matrix that shares its memory, or room for its float32 form."""
    if parameter.dtype != torch.float32:
        return nn.Parameter(torch.empty(0, device=parameter.device))
    if shards.is_cut(parameter) or parameter.ndim > 2:
        return nn.Parameter(as_matrix(shards.own(parameter)))
    return parameter


def _together(parameters: Mapping[str, nn.Parameter], apart: bool) -> list[list[str]]:
    """Names of weights that are updated at once: all in float32, of others ``TOGETHER``; apart, as many as the largest.
    """
    groups, room = [], 0
    most = max((p.numel() for p in parameters.values()), default=0) if apart else TOGETHER
    for name, parameter in parameters.items():
        size = parameter.numel() if apart or parameter.dtype != torch.float32 else 0
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return groups
