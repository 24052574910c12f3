"""Optimizers for weights in float32 or bfloat16.

Weights in float32 share an optimizer. Those in bfloat16 have one each, so that a step needs the float32 form of one
weight only; and so have all in a fused backward pass, which updates a weight as soon as its gradient is there.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..randomness import seed_of
from ..settings import SettingsError


def has_8_bit() -> bool:
    """True if bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


PACKAGES = {"adamw 8-bit": ("bitsandbytes", "bitsandbytes"), "lion": ("lion_pytorch", "lion-pytorch"),
            "prodigy": ("prodigyopt", "prodigyopt")}
"""Optimizers of other packages: module, and name for pip."""
BYTES = {"adamw": 8.0, "adamw 8-bit": 2.1, "adafactor": 0.1, "lion": 4.0, "prodigy": 16.0}
"""About how much each keeps for a weight."""


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


def stochastic_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 to bfloat16, up or down with the probability that keeps the mean (arXiv 2010.06192, section 3).

    Rounding to the nearest loses updates below 1/256 of a weight, which at a rate of 1e-5 are most of them.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    return ((bits + noise) & -0x10000).view(torch.float32).to(torch.bfloat16)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients, float32."""
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


def as_matrix(weight: Tensor) -> Tensor:
    """A view of a convolution's weight (out, in, h, w) as (out, in * h * w), which Adafactor can factor well."""
    return weight.view(len(weight), -1) if weight.ndim > 2 else weight


class Optimizer:
    """Steps over named weights; deterministic for its seed and the number of the step.

    Args:
        parameters: float32 or bfloat16.
        kind, weight_decay: see ``make``.
        seed: of the stochastic rounding.
        apart: whether weights are updated one by one.

    Raises:
        SettingsError: an optimizer that must see all weights at once, and cannot.
        ImportError: see ``make``.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: str, weight_decay: float, seed: int,
                 apart: bool = False):
        self.parameters, self.kind, self.seed = parameters, kind, seed
        self.masters = {name: nn.Parameter(as_matrix(p.detach()) if p.dtype == torch.float32 else
                                           torch.empty(0, device=p.device)) for name, p in parameters.items()}
        apart = apart or any(p.dtype != torch.float32 for p in parameters.values())
        if apart and kind == "prodigy":
            raise SettingsError("prodigy finds one rate for all weights, which must be float32 and updated together: "
                                "set precision to float32 and switch fused_backward off, or choose another optimizer.")
        self.shared = None if apart else make(kind, list(self.masters.values()), weight_decay)
        self.optimizers = {name: self.shared or make(kind, [master], weight_decay)
                           for name, master in self.masters.items()}

    @torch.no_grad()
    def step(self, number: int, rate: float) -> None:
        """Update all weights by their gradients, and drop the gradients."""
        if self.shared is None:
            for name in self.parameters:
                self.step_one(name, number, rate)
            return
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.masters[name].grad = as_matrix(parameter.grad.contiguous())
        self.shared.param_groups[0]["lr"] = rate
        self.shared.step()
        for name, parameter in self.parameters.items():
            parameter.grad = self.masters[name].grad = None

    @torch.no_grad()
    def step_one(self, name: str, number: int, rate: float) -> None:
        """Update one weight by its gradient, and drop the gradient."""
        parameter, master, optimizer = self.parameters[name], self.masters[name], self.optimizers[name]
        if parameter.grad is None:
            return
        optimizer.param_groups[0]["lr"] = rate
        rounded = parameter.dtype != torch.float32
        if rounded:
            master.data = as_matrix(parameter).float()
        master.grad = as_matrix(parameter.grad.contiguous()).to(master.dtype)
        optimizer.step()
        if rounded:
            generator = torch.Generator(parameter.device).manual_seed(seed_of(self.seed, "round", number, name))
            parameter.copy_(stochastic_round(master.data, generator).view_as(parameter))
            master.data = torch.empty(0, device=parameter.device)
        parameter.grad = master.grad = None

    def size(self) -> int:
        """About how many bytes its state has once every weight was updated."""
        return round(BYTES[self.kind] * sum(parameter.numel() for parameter in self.parameters.values()))

    def tensors(self) -> dict[str, Tensor]:
        """The state by "<weight>/<value>", live; "/<value>" for what Prodigy has found out about all weights."""
        found = {f"{name}/{key}": torch.as_tensor(value) for name, optimizer in self.optimizers.items()
                 for key, value in optimizer.state.get(self.masters[name], {}).items()}
        return found | {f"/{key}": torch.tensor(float(self.shared.param_groups[0][key]), dtype=torch.float64)
                        for key in self._common()}

    def _common(self) -> tuple[str, ...]:
        return ("d", "d_max", "d_numerator", "k") if self.kind == "prodigy" else ()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if not name:
                self.shared.param_groups[0][key] = float(value)
                continue
            counter = value.ndim == 0 and value.dtype == torch.int64  # some optimizers count in plain integers
            put_back = int(value) if counter else value.to(self.parameters[name].device, copy=True)
            self.optimizers[name].state[self.masters[name]][key] = put_back
