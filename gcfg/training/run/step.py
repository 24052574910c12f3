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
from ..weights import shards
from ..weights.optimizers import Optimizer, gradient_norm, gradient_norms
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
        cut: whether the processes share the weights, see ``shards``.
        whole: False while some weights are of this step and some of the next: then nothing may be saved.
        together: True once a step has failed in all processes at the same place.
    """

    def __init__(self, task: Task, loader: Loader, optimizer: Optimizer, settings: Settings, plan: Plan):
        self.cut = any(map(shards.is_cut, task.parameters.values()))
        if settings.fused_backward and distributed.world() > 1:
            raise ValueError("fused_backward works in one process only; switch it off for torchrun.")
        if self.cut and settings.batch < distributed.world():
            raise ValueError(f"with shard every process needs a picture of each batch; set batch to "
                             f"{distributed.world()} or more, or start fewer processes.")
        self.task, self.loader, self.optimizer, self.settings = task, loader, optimizer, settings
        self.planned = self.micro_batch = plan.micro_batch
        self.whole, self.together = True, False

    def take(self, step: int, rate: float) -> tuple[float, float]:
        """The step that follows ``step`` steps: its loss and the norm of its gradient before it was clipped.

        Raises:
            Diverged: a loss or a gradient is not finite; no weight has been updated by it.
            OutOfMemory: for the second time, or in the update of the weights.
            LatentsGone: of a picture.
        """
        self.whole = True
        try:
            if self.settings.fused_backward:
                loss, norm = self._fused(step, rate)
            else:
                loss, norm = self._clip(step, self._backward_in_memory(step))
                self.whole = False
                self.optimizer.step(step, rate)
        except Exception as error:
            self._drop_gradients()
            if is_out_of_memory(error) and not isinstance(error, OutOfMemory):
                raise OutOfMemory(f"out of memory at the update of step {step + 1} ({str(error)[:200]}).") from error
            raise
        self.whole = True
        return loss, norm

    def _clip(self, step: int, losses: Tensor) -> tuple[float, float]:
        """Sum loss and gradients over the processes and limit the gradients' norm; the mean loss and the norm before.

        The device is waited for once, here.
        """
        parameters, limit = self.task.parameters.values(), self.settings.gradient_clip
        loss = distributed.total(losses.sum()) / self.settings.batch
        if not self.cut:
            distributed.sum_gradients(parameters)
        gradients = [shards.own(p.grad) if self.cut else p.grad for p in parameters if p.grad is not None]
        norm = gradient_norm(gradients)
        if self.cut:
            norm = distributed.total(norm.square()).sqrt()
        loss, norm = torch.stack([loss, norm]).tolist()
        if not math.isfinite(loss + norm):
            self.together = True
            self._check(step, self._places(step), losses)
            raise Diverged(f"the {'gradient' if math.isfinite(loss) else 'loss'} of step {step + 1} is not finite.")
        if limit and norm > limit:
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        return loss, norm

    def _check(self, step: int, places: Sequence[int], losses: Tensor) -> None:
        """Diverged if losses are not finite, with the pictures at these places of the batch."""
        broken = [place for place, fine in zip(places, torch.isfinite(losses).tolist(), strict=True) if not fine]
        if broken:
            raise Diverged(f"the loss of step {step + 1} is not finite on "
                           f"{', '.join(self.loader.files(step, broken[:5]))}.")

    def _backward_in_memory(self, step: int) -> Tensor:
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

    def _fused(self, step: int, rate: float) -> tuple[float, float]:
        """Forward and backward pass in which groups of weights are updated as their gradients come; see ``_clip``."""
        groups = [names for names, _ in self.optimizer.groups]
        missing, squares = list(map(len, groups)), []

        def update(group: int) -> None:
            squares.append(self._clip_each(step, groups[group]))
            self.whole = False
            self.optimizer.step_group(group, step, rate)

        def arrived(group: int):
            def hook(_: nn.Parameter) -> None:
                missing[group] -= 1
                if not missing[group]:
                    update(group)
            return hook
        hooks = [self.task.parameters[name].register_post_accumulate_grad_hook(hook)
                 for names, hook in zip(groups, map(arrived, range(len(groups))), strict=True) for name in names]
        try:
            losses = self._backward(step)
            for group in filter(missing.__getitem__, range(len(groups))):  # weights without a gradient are among them
                update(group)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"out of memory at step {step + 1} in a fused backward pass.") from error
        finally:
            for handle in hooks:
                handle.remove()
        return float(losses.sum()) / self.settings.batch, math.sqrt(sum(squares))

    def _clip_each(self, step: int, names: Sequence[str]) -> float:
        """Limit the norm of each of these weights' gradients by itself; the square of their norm before."""
        limit = self.settings.gradient_clip
        gradients = {name: p.grad for name in names if (p := self.task.parameters[name]).grad is not None}
        norms = gradient_norms(list(gradients.values())).tolist() if gradients else []
        for (name, gradient), norm in zip(gradients.items(), norms, strict=True):
            if not math.isfinite(norm):
                raise Diverged(f"the gradient of '{name}' in step {step + 1} is not finite.")
            if limit and norm > limit:
                gradient.mul_(limit / (norm + 1e-6))
        return sum(norm * norm for norm in norms)

    def _backward(self, step: int) -> Tensor:
        """Gradients of this process's share of the batch; the losses (n,) of its pictures, in the order of ``_places``.

        A failure in one process is one in all of them, so that the first one can save; but processes that share the
        weights can only end, because the others wait for theirs in the middle of the network.
        """
        found, failure = [torch.zeros(0, device=self.task.device)], None
        try:
            for group, weight in self._turns(step):
                losses = losses_of(self.task, *self.loader.samples(step, group))
                if self.settings.fused_backward:
                    self._check(step, group, losses)
                (losses.sum() * weight).backward()
                if weight:
                    found.append(losses.detach())
                del losses  # with all that its graph holds, before the next forward pass
        except Exception as error:
            if self.cut:
                raise
            failure = error
        if not self.cut and distributed.any_of(failure is not None, self.task.device):
            self.together = True
            raise failure or RuntimeError("another process of this run has failed; see its message.")
        return torch.cat(found)

    def _turns(self, step: int) -> list[tuple[list[int], float]]:
        """This process's micro-batches, and what their losses count.

        Processes that share the weights must all compute equally many: a repeated one counts nothing.
        """
        size, processes = self.micro_batch, distributed.world()
        groups = self.loader.groups(step, size)
        if not self.cut:
            return [(group, 1.0 / self.settings.batch) for group in groups]
        most = max(len(self.loader.groups(step, size, rank)) for rank in range(processes))
        own = [(group, processes / self.settings.batch) for group in groups]  # FSDP2 takes the mean over processes
        return own + [(groups[0], 0.0)] * (most - len(groups))

    def _places(self, step: int) -> list[int]:
        """The places in the batch of this process's pictures, in the order in which they are computed."""
        return [place for group in self.loader.groups(step, self.micro_batch) for place in group]

    def _drop_gradients(self) -> None:
        for parameter in self.task.parameters.values():
            parameter.grad = None
        if self.task.device.type == "cuda":
            torch.cuda.empty_cache()
