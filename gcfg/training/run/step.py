"""One optimizer step over a batch in micro-batches, on one or several processes, and how it can fail."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data.batches import Loader
from ..data.dataset import Latent
from ..memory import Plan
from ..settings import Settings
from ..weights.optimizers import Optimizer, gradient_norm
from . import distributed
from .task import Diverged, OutOfMemory, Task, is_out_of_memory


def losses_of(task: Task, x0: Tensor, noise: Tensor, level: Tensor, pictures: Sequence[Latent]) -> Tensor:
    """The losses (B,) of samples, computed in the task's type."""
    with torch.autocast(task.device.type, task.autocast, enabled=task.autocast is not None):
        return task.losses(x0, noise, level, pictures)


class Stepper:
    """Takes steps.

    Attributes:
        micro_batch: pictures computed at a time; halved once when memory runs out.
        whole: False while some weights are of this step and some of the next: then nothing may be saved.
        together: True once a step has failed in all processes at the same place.
    """

    def __init__(self, task: Task, loader: Loader, optimizer: Optimizer, settings: Settings, plan: Plan):
        if settings.fused_backward and distributed.world() > 1:
            raise ValueError("fused_backward works in one process only; switch it off for torchrun.")
        self.task, self.loader, self.optimizer, self.settings = task, loader, optimizer, settings
        self.planned = self.micro_batch = plan.micro_batch
        self.whole, self.together = True, False

    def take(self, step: int, rate: float) -> tuple[float, float]:
        """The step that follows ``step`` steps: its loss and the norm of its gradient, NaN in a fused backward pass.

        Raises:
            Diverged: a loss or a gradient is not finite; no weight has been updated by it.
            OutOfMemory: for the second time, or in the update of the weights.
            LatentsGone: of a picture.
        """
        self.whole, norm = True, math.nan
        try:
            if self.settings.fused_backward:
                loss = self._fused(step, rate)
            else:
                loss = self._backward_in_memory(step)
                norm = self._clip(step)
                self.whole = False
                self.optimizer.step(step, rate)
        except Exception as error:
            self._drop_gradients()
            if is_out_of_memory(error) and not isinstance(error, OutOfMemory):
                raise OutOfMemory(f"out of memory at the update of step {step + 1} ({str(error)[:200]}).") from error
            raise
        self.whole = True
        return loss, norm

    def _clip(self, step: int) -> float:
        """Sum the gradients over the processes and limit their norm; the norm before."""
        parameters, limit = self.task.parameters.values(), self.settings.gradient_clip
        distributed.sum_gradients(parameters)
        norm = float(gradient_norm(parameters))
        if not math.isfinite(norm):
            self.together = True
            raise Diverged(f"the gradient of step {step + 1} is not finite.")
        if limit and norm > limit:
            for gradient in (p.grad for p in parameters if p.grad is not None):  # layers that the task does not reach
                gradient.mul_(limit / (norm + 1e-6))
        return norm

    def _backward_in_memory(self, step: int) -> float:
        """``_backward``, and the first time that memory runs out again with half the micro-batch."""
        try:
            return self._backward(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error)
        self._drop_gradients()
        halved = self.micro_batch // 2
        if self.micro_batch == self.planned and halved and distributed.world() == 1:
            self.together = False
            logging.warning("GCFG: out of memory at step %d: micro-batches of %d instead of %d from now on, with the "
                            "same effective batch.", step + 1, halved, self.micro_batch)
            self.micro_batch = halved
            return self._backward_in_memory(step)
        raise OutOfMemory(f"out of memory at step {step + 1} with micro-batches of {self.micro_batch} "
                          f"({failure[:200]}).")

    def _fused(self, step: int, rate: float) -> float:
        """Forward and backward pass in which every weight is updated, its gradient checked and clipped by itself."""
        limit = self.settings.gradient_clip

        def hook(name: str):
            def update(parameter: nn.Parameter) -> None:
                norm = float(gradient_norm([parameter]))
                if not math.isfinite(norm):
                    raise Diverged(f"the gradient of '{name}' in step {step + 1} is not finite.")
                if limit and norm > limit:
                    parameter.grad.mul_(limit / (norm + 1e-6))
                self.whole = False
                self.optimizer.step_one(name, step, rate)
            return update
        hooks = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in self.task.parameters.items()]
        try:
            return self._backward(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"out of memory at step {step + 1} in a fused backward pass.") from error
        finally:
            for handle in hooks:
                handle.remove()

    def _backward(self, step: int) -> float:
        """Gradients of this process's share of the batch; the mean loss over the whole batch.

        A failure in one process is one in all of them, so that the first one can save.
        """
        total, broken, failure = torch.zeros((), device=self.task.device), None, None
        try:
            for group in self.loader.groups(step, self.micro_batch):
                losses = losses_of(self.task, *self.loader.samples(step, group))
                finite = torch.isfinite(losses.detach())
                if not finite.all():
                    broken = self.loader.files(step, [group[i] for i in (~finite).nonzero().flatten().tolist()])
                    break
                (losses.sum() / self.settings.batch).backward()
                total += losses.detach().sum() / self.settings.batch
        except Exception as error:
            failure = error
        if distributed.any_of(failure is not None, self.task.device):
            self.together = True
            raise failure or RuntimeError("another process of this run has failed; see its message.")
        if distributed.any_of(broken is not None, self.task.device):
            self.together = True
            raise Diverged(f"the loss of step {step + 1} is not finite on {', '.join((broken or ['?'])[:5])}.")
        return float(distributed.total(total))

    def _drop_gradients(self) -> None:
        for parameter in self.task.parameters.values():
            parameter.grad = None
        if self.task.device.type == "cuda":
            torch.cuda.empty_cache()
