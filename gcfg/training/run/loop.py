"""The training loop: accumulate, clip, step, average, measure, save; and what happens when something goes wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..data.batches import Loader
from ..data.dataset import Latent, LatentsGone
from ..memory import Plan
from ..randomness import draw
from ..settings import Settings
from ..weights import shards
from ..weights.average import Average
from ..weights.optimizers import Optimizer
from ..weights.schedule import Schedule
from . import continuation, distributed, state
from .folder import RunFolder
from .recording import Recorder
from .state import State
from .step import Stepper, losses_of
from .task import Diverged, OutOfMemory, Task, Watch

ADVICE = {
    Diverged: "Lower learning_rate, or remove the pictures that are named.",
    OutOfMemory: "Choose a smaller memory preset, a LoRA, a smaller batch or a lower resolution in a new run.",
    LatentsGone: "Start again: what is missing is encoded anew.",
    OSError: "Start again then.",
}
"""What to do about a failure."""
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
        self.task, self.held_out, self.settings, self.plan = task, held_out, settings, plan
        self.folder, self.watch, self.schedule = folder, watch or Watch(), Schedule.of(settings)
        self.step, self.saved_at = 0, None
        self.record = Recorder(folder, distributed.rank() == 0, settings.tensorboard)
        self.loader = Loader(latents, settings, task.device)
        self.optimizer = Optimizer(task.parameters, plan.optimizer, settings.weight_decay, settings.seed,
                                   settings.fused_backward)
        self.average = Average(task.parameters, settings.ema_decay if settings.ema else 0.0, plan.ema_on_cpu,
                               getattr(torch, settings.ema_precision), settings.seed)
        self.stepper = Stepper(task, self.loader, self.optimizer, settings, plan)

    def resume(self, newest: State | None) -> None:
        """Go on from a state; with None begin."""
        rows = []
        if newest is not None:
            self._restore(newest)
            rows = newest.history.tolist()
        self.record.begin(rows)

    @torch.no_grad()
    def _restore(self, newest: State) -> None:
        if newest.parameters.keys() != self.task.parameters.keys():
            raise state.StateError(f"the state of step {newest.step} belongs to another model; choose another "
                                   "run_name.")
        for name, parameter in self.task.parameters.items():
            shards.own(parameter).copy_(shards.rows_of(newest.parameters[name], parameter))
        self.average.load(newest.average)
        self.optimizer.load(newest.optimizer)
        self.step = self.saved_at = newest.step
        self.schedule = self.schedule.going_on(newest.notes.get("cosine"), self.step)
        if newest.notes.get("planned_micro_batch") == self.stepper.planned:
            self.stepper.micro_batch = int(newest.notes["micro_batch"])
        for text in (continuation.said_of_pictures(newest.notes, [*self.loader.latents, *self.held_out]),
                     continuation.said_of_threads(newest.notes, self.task.device)):
            if text and distributed.rank() == 0:
                self.watch.tell(text)

    def run(self) -> None:
        """Train to the target or until interrupted; the state is saved in both cases.

        Raises:
            Diverged: a loss, gradient or weight that is not finite; the state before it is saved.
            OutOfMemory: the second time that memory runs out; the state is saved.
            OSError: the state could not be written, the earlier one is whole; or latents are gone, the state is saved.
        """
        s, first = self.settings, distributed.rank() == 0
        if first and self.step < s.target_steps:
            self.watch.tell(self.folder.check_space(self._size(), s.keep))
        self.watch.begins()
        try:
            if self.step == 0 and not self.record.rows and s.held_out_every and self.held_out:
                self.record.add([0.0, math.nan, self.measure(), math.nan, math.nan])
            while self.step < s.target_steps:
                if distributed.any_of(self.watch.interrupted(), self.task.device):
                    break
                with self._saving_on_failure():
                    self._advance()
            self.save()
        finally:
            self.loader.close()
            self.record.close()

    @contextmanager
    def _saving_on_failure(self) -> Iterator[None]:
        """Whatever fails within: the weights are saved, if they are those of one step, and the error says so."""
        try:
            yield
        except Exception as error:
            if (distributed.rank() > 0 or self.stepper.cut) and not self.stepper.together:
                where = "The run goes on from its last save."  # this process cannot save, or does not know it
            elif self.stepper.whole:
                where = f"The state of step {self.step} is saved ({self.save()})."
            else:
                where = f"The run goes on {self._goes_on()}."
            if self.stepper.together:
                distributed.wait()  # for the first process, which saves
            for kind, advice in ADVICE.items():
                if isinstance(error, kind):
                    raise kind(f"{error} {where} {advice}") from error
            raise

    def _advance(self) -> None:
        """One step, and what is due after it."""
        s, first = self.settings, distributed.rank() == 0
        loss, norm, rate = self.optimize()
        self.step += 1
        last = self.step == s.target_steps
        due = s.held_out_every and self.held_out and (last or self.step % s.held_out_every == 0)
        self.record.add([float(self.step), loss, self.measure() if due else math.nan, rate, norm])
        if first:
            self.watch.progress(self.step, s.target_steps, loss)
        if self.step % s.save_every == 0:
            self.save()
        if s.preview_every and (last or self.step % s.preview_every == 0):
            self._preview()

    def _preview(self) -> None:
        stopped = None
        with self.averaged() as weights:
            try:
                if distributed.rank() == 0:
                    self.watch.preview(self.step, weights)
            except BaseException as error:  # interrupted while sampling
                stopped = error
        if distributed.any_of(stopped is not None, self.task.device):
            self.save()
            raise stopped or KeyboardInterrupt

    @contextmanager
    def averaged(self) -> Iterator[Mapping[str, Tensor]]:
        """Within, the weights are the averaged ones; the first process may read them by name, see ``shards.whole``."""
        with self.average.applied(), shards.whole(self.average.exported(), self.task.parameters) as weights:
            yield weights

    def optimize(self) -> tuple[float, float, float]:
        """One optimizer step: its loss, the norm of its gradient, its learning rate."""
        rate = self.schedule.at(self.step)
        loss, norm = self.stepper.take(self.step, rate)
        self.stepper.whole = False
        self.average.update(self.step + 1)
        self.stepper.whole = True
        return loss, norm, rate

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
                    at = x0[None], noise[None].to(self.task.device), level
                    total += losses_of(self.task, *at, [latent])[0]
        return float(total) / (len(self.held_out) * HELD_OUT_LEVELS)

    def save(self) -> str:
        """Write the state unless this step's is there; its file. The first process does it.

        The others go on, or give it their rows of weights that are cut.
        """
        place, first = state.path_of(self.folder.states, self.step), distributed.rank() == 0
        if self.saved_at == self.step or not (first or self.stepper.cut):
            return str(place)
        now = self._state()
        self._agree(self._refusal(state.broken(now)))
        failure = None
        with shards.whole(now.tensors(), now.weights(self.task.parameters)) as whole:
            try:
                if first:
                    state.save(self.folder.states, now, self.settings.keep, whole)
            except Exception as error:
                why = getattr(error, "strerror", None) or error
                failure = OSError(f"the state of step {self.step} could not be written ({why}). Free some space and "
                                  f"start again: the run goes on {self._goes_on()}.")
                failure.__cause__ = error
        self._agree(failure)
        self.saved_at = self.step
        if first:
            self.record.draw()
        with self.averaged() as weights:
            if first:
                self.watch.saved(self.step, weights)
        return str(place)

    def _refusal(self, spoilt: str | None) -> Diverged | None:
        return spoilt and Diverged(f"'{spoilt}' is not finite after step {self.step}, which is not saved; the run "
                                   f"goes on {self._goes_on()}. Lower learning_rate.")

    def _agree(self, failure: Exception | None) -> None:
        """Raise a failure, in all processes if it takes all of them to save."""
        if self.stepper.cut and distributed.any_of(failure is not None, self.task.device):
            self.stepper.together = True
            raise failure or RuntimeError("the state could not be saved; see the message of another process.")
        if failure:
            raise failure

    def _state(self) -> State:
        latents = [*self.loader.latents, *self.held_out]
        notes = {**self.task.notes, "optimizer": self.plan.optimizer, "precision": self.plan.precision,
                 "micro_batch": self.stepper.micro_batch, "planned_micro_batch": self.stepper.planned,
                 "cosine": self.schedule.notes(), "threads": torch.get_num_threads(),
                 "pictures": sorted({latent.content for latent in latents}),
                 "held_out": sorted({latent.content for latent in self.held_out})}
        return State(self.step, {n: shards.own(p) for n, p in self.task.parameters.items()}, self.average.values,
                     self.optimizer.tensors(), self.task.features, self.record.table(), notes)

    def _size(self) -> int:
        """About how many bytes a state takes once every weight was updated."""
        now = self._state()
        forms = shards.Whole(now.tensors(), now.weights(self.task.parameters)).forms()
        begun = state.size({name: form for name, form in forms.items() if name.startswith("optimizer/")})
        return state.size(forms) + max(0, self.optimizer.size() - begun)

    def _goes_on(self) -> str:
        return "from the beginning" if self.saved_at is None else f"from step {self.saved_at}"
