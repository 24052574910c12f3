"""One training loop for every stage: exact resume, an average of the weights, a limit on the clock.

Noise, order and captions follow from (seed, step), see ``gcfg.training.randomness``, so a run that is stopped and
started again makes the same weights to the bit. The rate is flat after a warm-up and falls linearly over the last part
of the steps; the state before it falls is kept (``before_decay``), so that a later session can go on from there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from gcfg import files
from gcfg.training.run import state

Network = TypeVar("Network", bound=nn.Module)

SAVE_SECONDS = 150.0
REPORT_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """How a stage is trained.

    Args:
        steps: optimizer steps in all; the rate reaches its end there.
        rate: of AdamW, flat between ``warmup`` steps and the fall over the last ``decay`` (share of the steps).
        average: largest decay of the weights' exponential moving average.
        weight_decay, clip: AdamW's, and the largest norm of the gradient.
    """

    steps: int
    rate: float
    warmup: int = 50
    decay: float = 0.4
    average: float = 0.995
    weight_decay: float = 0.01
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """The rate of step 0, 1, ..."""
        fall = max(1.0, self.steps * self.decay)
        return self.rate * min(1.0, (step + 1) / self.warmup, max(0.01, (self.steps - step) / fall))

    @property
    def falls_at(self) -> int:
        return int(self.steps * (1 - self.decay))


class Stage:
    """Weights, their average and their optimizer, in a folder that they are saved to."""

    def __init__(self, folder: Path, module: nn.Module, plan: Plan):
        self.folder, self.plan, self.step = folder, plan, 0
        self.parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(list(self.parameters.values()), lr=plan.rate, betas=(0.9, 0.99),
                                           weight_decay=plan.weight_decay, foreach=True)
        self._resume()

    def run(self, loss_of: Callable[[int], Tensor], minutes: float = 1e9, say: Callable[[str], None] = print) -> bool:
        """Train to the end of the plan or of the minutes; True at the end of the plan."""
        start, saved, first, total = time.monotonic(), time.monotonic(), self.step, 0.0
        while self.step < self.plan.steps and time.monotonic() - start < 60 * minutes:
            if self.step == self.plan.falls_at:
                self._keep_before_decay()
            total += self.advance(loss_of(self.step))
            if self.step % REPORT_STEPS == 0:
                speed = (self.step - first) / (time.monotonic() - start)
                say(f"{self.folder.name} {self.step}/{self.plan.steps} loss {total / REPORT_STEPS:.4f} "
                    f"{speed:.2f} steps/s")
                total = 0.0
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.step >= self.plan.steps

    def advance(self, loss: Tensor) -> float:
        """One optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        weights = list(self.parameters.values())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, self.plan.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [value.detach() for value in weights], 1 - decay)
        return float(loss.detach())

    def save(self) -> None:
        moments = {f"{name}/{key}": value for name, weight in self.parameters.items()
                   for key, value in self.optimizer.state.get(weight, {}).items()}
        state.save(self.folder, state.State(self.step, self.parameters, self.average, moments), keep=1)

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files.clear_remains(self.folder)
        if (found := state.latest(self.folder)) is None:
            return
        if set(found.parameters) != set(self.parameters):
            raise SystemExit(f"'{self.folder}' holds a run of another architecture: name another folder, or remove it.")
        self.step = found.step
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(found.parameters[name])
                self.average[name].copy_(found.average[name])
        for key, value in found.optimizer.items():
            name, _, kind = key.rpartition("/")
            self.optimizer.state[self.parameters[name]][kind] = value

    def _keep_before_decay(self) -> None:
        self.save()
        kept = self.folder / "before_decay"
        kept.mkdir(exist_ok=True)
        shutil.copy(state.path_of(self.folder, self.step), state.path_of(kept, self.step))


class Named(nn.Module):
    """Parameters under names that hold dots and slashes."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        super().__init__()
        self._named = parameters

    def named_parameters(self, *args, **kwargs):
        return iter(self._named.items())


def averaged(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a stage that was trained."""
    if (found := state.latest(folder)) is None:
        raise SystemExit(f"'{folder}' holds no training state yet: train that stage first.")
    return dict(found.average)


def frozen(network: Network, folder: Path) -> Network:
    """A network with the averaged weights of a stage, to be used and not trained."""
    network.load_state_dict(averaged(folder))
    return network.train(False).requires_grad_(False)
