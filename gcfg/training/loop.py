"""The training loop: accumulate, clip, step, average, measure, save; and what happens when something goes wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import distributed, state
from .average import Average
from .data import Latent, Order, micro_batches
from .folder import COLUMNS, RunFolder
from .memory import Plan
from .objectives import offset_noise
from .optimizers import Optimizer, gradient_norm
from .randomness import draw
from .settings import Settings
from .state import State
from .task import Diverged, OutOfMemory, Task, Watch, is_out_of_memory, learning_rate

HELD_OUT_LEVELS = 4
"""Noise levels at which every held-out picture is measured."""


class Training:
    """One run, from its newest state to its target.

    Args:
        task: what is trained.
        latents: pictures to train on.
        held_out: pictures to measure on.
        settings, plan: how.
        folder: where everything is kept.
        watch: see ``Watch``; of the first process only.
    """

    def __init__(self, task: Task, latents: Sequence[Latent], held_out: Sequence[Latent], settings: Settings,
                 plan: Plan, folder: RunFolder, watch: Watch | None = None):
        self.task, self.latents, self.held_out, self.settings = task, latents, held_out, settings
        self.folder, self.watch = folder, watch or Watch()
        self.step, self.history, self.saved_at = 0, [], None
        self.micro_batch = self.planned_micro_batch = plan.micro_batch
        self.order = Order([latent.shape for latent in latents], settings.batch, settings.seed)
        self.optimizer = Optimizer(task.parameters, plan.optimizer, settings.weight_decay, settings.seed)
        self.average = Average(task.parameters, settings.ema_decay if settings.ema else 0.0, plan.ema_on_cpu)
        if settings.fused_backward and distributed.world() > 1:
            raise ValueError("fused_backward works in one process only; switch it off for torchrun.")

    def resume(self, newest: State | None) -> None:
        """Go on from a state; with None begin."""
        if newest is not None:
            self._restore(newest)
        if distributed.rank() == 0:
            state.clear_remains(self.folder.states)
            self.folder.write_table(self._table())

    @torch.no_grad()
    def _restore(self, newest: State) -> None:
        if newest.parameters.keys() != self.task.parameters.keys():
            raise state.StateError(f"the state of step {newest.step} belongs to another model; choose another "
                                   "run_name.")
        for name, parameter in self.task.parameters.items():
            parameter.copy_(newest.parameters[name])
        self.average.load(newest.average)
        self.optimizer.load(newest.optimizer)
        self.step, self.history, self.saved_at = newest.step, newest.history.tolist(), newest.step
        if newest.notes.get("planned_micro_batch") == self.planned_micro_batch:
            self.micro_batch = int(newest.notes["micro_batch"])

    def run(self) -> None:
        """Train to the target or until interrupted; the state is saved in both cases.

        Raises:
            Diverged: a loss that is not finite; the state before it is saved.
            OutOfMemory: the second time that memory runs out; the state is saved.
            OSError: the state could not be written; the earlier one is whole.
        """
        s = self.settings
        if self.step == 0 and not self.history and s.held_out_every and self.held_out:
            self._record([0.0, math.nan, self.measure(), math.nan, math.nan])
        while self.step < s.target_steps:
            if distributed.any_of(self.watch.interrupted(), self.task.device):
                break
            loss, norm, rate = self.optimize()
            self.step += 1
            last = self.step == s.target_steps
            due = s.held_out_every and self.held_out and (last or self.step % s.held_out_every == 0)
            self._record([float(self.step), loss, self.measure() if due else math.nan, rate, norm])
            if distributed.rank() == 0:
                self.watch.progress(self.step, s.target_steps, loss)
            if self.step % s.save_every == 0:
                self.save()
            if s.preview_every and (last or self.step % s.preview_every == 0) and distributed.rank() == 0:
                self._preview()
        self.save()

    def _preview(self) -> None:
        try:
            with self.average.applied():
                self.watch.preview(self.step)
        except BaseException:  # interrupted while sampling; the weights are whole again by now
            self.save()
            raise

    def optimize(self) -> tuple[float, float, float]:
        """One optimizer step: its loss, the norm of its gradient, its learning rate."""
        parameters, rate = self.task.parameters, learning_rate(self.settings, self.step)
        if self.settings.fused_backward:
            loss, norm = self._fused(rate), math.nan
        else:
            loss = self._backward_in_memory()
            distributed.sum_gradients(parameters.values())
            norm = float(gradient_norm(parameters.values()))
            if not math.isfinite(norm):
                self._diverged("the gradient", [])
            if self.settings.gradient_clip and norm > self.settings.gradient_clip:
                for parameter in parameters.values():
                    parameter.grad.mul_(self.settings.gradient_clip / (norm + 1e-6))
            self.optimizer.step(self.step, rate)
        self.average.update(self.step + 1)
        return loss, norm, rate

    def _backward_in_memory(self) -> float:
        """``_backward``, and the first time that memory runs out again with half the micro-batch."""
        try:
            return self._backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error)
        self._drop_gradients()
        halved = self.micro_batch // 2
        if self.micro_batch == self.planned_micro_batch and halved and distributed.world() == 1:
            logging.warning("GCFG: out of memory at step %d: micro-batches of %d instead of %d from now on, with the "
                            "same effective batch.", self.step + 1, halved, self.micro_batch)
            self.micro_batch = halved
            return self._backward_in_memory()
        place = self.save()
        raise OutOfMemory(f"out of memory at step {self.step + 1} with micro-batches of {self.micro_batch}. Step "
                          f"{self.step} is saved ({place}). Choose a smaller memory preset, a LoRA, or a lower "
                          f"resolution in a new run. ({failure[:200]})")

    def _fused(self, rate: float) -> float:
        """Forward and backward pass in which every weight is updated, its gradient clipped by itself."""
        def hook(name: str):
            def update(parameter: nn.Parameter) -> None:
                if self.settings.gradient_clip:
                    nn.utils.clip_grad_norm_([parameter], self.settings.gradient_clip)
                self.optimizer.step_one(name, self.step, rate)
            return update
        hooks = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in self.task.parameters.items()]
        try:
            return self._backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            saved = f"step {self.saved_at}" if self.saved_at else "the beginning"  # some weights are updated by now
            raise OutOfMemory(f"out of memory at step {self.step + 1}; the run goes on from {saved}. Choose a smaller "
                              "batch in a new run, or switch fused_backward off.") from error
        finally:
            for handle in hooks:
                handle.remove()

    def _backward(self) -> float:
        """Gradients of this process's share of the batch; the mean loss over the whole batch."""
        batch = self.order.at(self.step)
        mine = {place: self.latents[batch[place]].shape
                for place in range(distributed.rank(), len(batch), distributed.world())}
        total, broken = torch.zeros((), device=self.task.device), []
        for group in micro_batches(mine, self.micro_batch):
            losses = self._losses(*self._samples(batch, group), [self.latents[batch[place]] for place in group])
            finite = torch.isfinite(losses.detach())
            if not finite.all():
                broken = [self.latents[batch[group[i]]].file for i in (~finite).nonzero().flatten().tolist()]
                break
            (losses.sum() / len(batch)).backward()
            total += losses.detach().sum() / len(batch)
        if distributed.any_of(bool(broken), self.task.device):
            self._diverged("the loss", broken)
        return float(distributed.total(total))

    def _samples(self, batch: Sequence[int], places: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, noise and levels for places of the batch; the same whatever the micro-batch is."""
        rows = []
        for place in places:
            latent = self.latents[batch[place]]
            level, flip, noise, offset = draw(latent.shape, self.settings.seed, "sample", self.step, place)
            x0 = latent.load(self.settings.flip and flip < 0.5)
            rows.append((x0, offset_noise(noise, offset, self.settings.noise_offset), torch.tensor(level)))
        return tuple(torch.stack(column).to(self.task.device) for column in zip(*rows, strict=True))

    def _losses(self, x0: Tensor, noise: Tensor, level: Tensor, pictures: Sequence[Latent]) -> Tensor:
        kind = self.task.autocast
        with torch.autocast(self.task.device.type, kind, enabled=kind is not None):
            return self.task.losses(x0, noise, level, pictures)

    @torch.no_grad()
    def measure(self) -> float:
        """The held-out loss: the averaged weights on fixed noise at fixed levels."""
        total = torch.zeros((), device=self.task.device)
        with self.average.applied():
            for number, latent in enumerate(self.held_out):
                x0 = latent.load(mirrored=False).to(self.task.device)
                for k in range(HELD_OUT_LEVELS):
                    _, _, noise, _ = draw(latent.shape, self.settings.seed, "held out", number, k)
                    level = torch.tensor([(k + 0.5) / HELD_OUT_LEVELS], device=self.task.device)
                    total += self._losses(x0[None], noise[None].to(self.task.device), level, [latent])[0]
        return float(total) / (len(self.held_out) * HELD_OUT_LEVELS)

    def save(self) -> str:
        """Write the state unless this step's is there; its file. The first process does it, the others go on."""
        place = state.path_of(self.folder.states, self.step)
        if distributed.rank() != 0 or self.saved_at == self.step:
            return str(place)
        notes = {**self.task.notes, "micro_batch": self.micro_batch, "planned_micro_batch": self.planned_micro_batch}
        now = State(self.step, {n: p.detach() for n, p in self.task.parameters.items()}, self.average.values,
                    self.optimizer.tensors(), self.task.features, self._table(), notes)
        try:
            state.save(self.folder.states, now, self.settings.keep)
        except Exception as error:
            before = "from the beginning" if self.saved_at is None else f"from step {self.saved_at}"
            raise OSError(f"the state of step {self.step} could not be written ({error}). Free some space and start "
                          f"again: the run goes on {before}.") from error
        self.saved_at = self.step
        self.folder.write_curve(self._table())
        return str(place)

    def _diverged(self, what: str, files: list[str]) -> None:
        self._drop_gradients()
        place = self.save()
        on = f" on {', '.join(files[:5])}" if files else ""
        raise Diverged(f"{what} of step {self.step + 1} is not finite{on}. The state of step {self.step}, the last "
                       f"good one, is saved ({place}). Lower learning_rate, or remove these pictures.")

    def _drop_gradients(self) -> None:
        for parameter in self.task.parameters.values():
            parameter.grad = None
        if self.task.device.type == "cuda":
            torch.cuda.empty_cache()

    def _table(self) -> Tensor:
        return torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(COLUMNS))

    def _record(self, row: list[float]) -> None:
        self.history.append(row)
        if distributed.rank() == 0:
            self.folder.append(row)
