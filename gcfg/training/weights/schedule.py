"""The learning rate over a run, without a jump where a run goes on to another target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..settings import Settings, SettingsError


@dataclass(frozen=True)
class Schedule:
    """A linear rise over ``warm_up`` steps, then constant, or a cosine from ``level`` at ``begin`` to 0 at ``end``.

    Attributes:
        kind: "constant" or "cosine".
        rate: the learning rate at level 1.
        warm_up: steps of the rise.
        begin, level, end: of the cosine.
    """

    kind: str
    rate: float
    warm_up: int
    begin: int
    level: float
    end: int

    @classmethod
    def of(cls, settings: Settings) -> Schedule:
        """That of a new run."""
        return cls(settings.schedule, settings.learning_rate, settings.warm_up, settings.warm_up, 1.0,
                   settings.target_steps)

    def at(self, step: int) -> float:
        """The rate of the step that follows ``step`` steps."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        if self.kind == "constant":
            return self.rate
        along = min(1.0, (step - self.begin) / max(1, self.end - self.begin))
        return self.rate * self.level * 0.5 * (1.0 + math.cos(math.pi * along))

    def going_on(self, before: Sequence[float] | None, step: int) -> Schedule:
        """That of a run which goes on at ``step``.

        Args:
            before: ``notes`` of its state, None if it had another kind of schedule.
            step: steps done.

        Raises:
            SettingsError: its cosine has come to its end, and a later target would have to raise the rate again.
        """
        if self.kind == "constant" or step < self.warm_up:
            return self
        if before is None:
            return replace(self, begin=step)
        was = replace(self, begin=int(before[0]), level=float(before[1]), end=int(before[2]))
        if was.end == self.end or step >= self.end:
            return was
        level = was.at(step) / self.rate
        if level < 1e-6:
            raise SettingsError(f"the learning rate of this run has fallen to 0 at step {was.end}, where its cosine "
                                "ends. To train longer set schedule to constant, with a learning_rate as low as you "
                                "want it to go on with.")
        return replace(self, begin=step, level=level)

    def notes(self) -> list[float] | None:
        """What a state keeps of it."""
        return None if self.kind == "constant" else [self.begin, self.level, self.end]
