"""What a sampler should compute: predictions, guidances between them, and the recipe that adds the guidances up.

A recipe names its models, conditionings and masks by strings. The objects behind the names belong to whoever runs the
recipe, so that a recipe can be compared, hashed, written to a file and read back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from .schedule import Schedule
from .shaping import Shaping

BASE = "base"
UNCONDITIONAL = "unconditional"


@dataclass(frozen=True)
class Prediction:
    """The denoised prediction of one model under one conditioning."""

    model: str = BASE
    conditioning: str = UNCONDITIONAL


@dataclass(frozen=True)
class Guidance:
    """One term of GCFG: ``scale * schedule * mask * shape(prediction - reference)``.

    Args:
        prediction: what the guidance pulls towards.
        reference: what it is measured from; the recipe's baseline in the paper's form.
        scale: weight of the difference; negative pushes away, 0 costs no forward pass.
        start, end: window of the guidance in sampling progress, 0 (all noise) to 1 (done), both ends included.
        schedule: factor on the scale over sampling progress.
        shaping: what happens to the difference before it is added; the neutral shaping changes nothing.
        mask: name of a spatial mask, or None for the whole picture.
        name: how plots and errors call the guidance.
        perpendicular_to: a difference (prediction, reference), usually that of another guidance: the part along it is
            taken out first, as Perp-Neg does (arXiv 2304.04968).

    Raises:
        ValueError: the scale is not finite or the window is not within 0..1.
    """

    prediction: Prediction
    reference: Prediction = Prediction()
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    shaping: Shaping = field(default_factory=Shaping)
    mask: str | None = None
    name: str = ""
    perpendicular_to: tuple[Prediction, Prediction] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"{self.label}: scale must be a finite number, not {self.scale}.")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(f"{self.label}: its window must satisfy 0 <= start_percent <= end_percent <= 1, "
                             f"not {self.start}..{self.end}.")

    @property
    def label(self) -> str:
        """The name for people: the given one, else the prediction it pulls towards."""
        return self.name or f"{self.prediction.model} / {self.prediction.conditioning}"

    @property
    def uses(self) -> tuple[Prediction, ...]:
        """The predictions that it is computed from."""
        return self.prediction, self.reference, *(self.perpendicular_to or ())

    @property
    def is_linear(self) -> bool:
        """True if the term is a plain multiple of the difference, everywhere in the picture."""
        return self.mask is None and self.perpendicular_to is None and self.shaping.is_neutral


@dataclass(frozen=True)
class Recipe:
    """GCFG in denoised space, arXiv 2312.08195: ``D = D_0 + sum_i w_i M_i shape_i(D_i - R_i)``."""

    guidances: tuple[Guidance, ...] = ()
    baseline: Prediction = Prediction()

    def renamed(self, models: Mapping[str, str] | None = None,
                conditionings: Mapping[str, str] | None = None) -> Recipe:
        """The same recipe with models and conditionings under other names; names not in a mapping stay."""
        models, conditionings = models or {}, conditionings or {}

        def rename(p: Prediction) -> Prediction:
            return Prediction(models.get(p.model, p.model), conditionings.get(p.conditioning, p.conditioning))

        guidances = (replace(g, prediction=rename(g.prediction), reference=rename(g.reference), perpendicular_to=(
            g.perpendicular_to and tuple(map(rename, g.perpendicular_to)))) for g in self.guidances)
        return Recipe(tuple(guidances), rename(self.baseline))

    def check_balance(self) -> None:
        """For runs whose only guidances are the recipe's: one with a balance needs another to be measured by.

        Raises:
            ValueError: all guidances that act have a balance.
        """
        acting = [g for g in self.guidances if g.scale != 0.0]
        if acting and all(g.shaping.balance > 0 for g in acting):
            raise ValueError(f"{acting[0].label}: balance is a share of the control guidance, and there is none; add a "
                             "guidance without balance (the prompt), or set balance to 0.")

    def to_dict(self) -> dict:
        """Plain data for a JSON file; ``Recipe.from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping) -> Recipe:
        """The inverse of :meth:`to_dict`. Unknown keys are an error (TypeError), so that nothing is lost in silence."""
        guidances = []
        for entry in data.get("guidances", ()):
            entry = dict(entry)
            entry["prediction"] = Prediction(**entry["prediction"])
            entry["reference"] = Prediction(**entry.get("reference", {}))
            entry["schedule"] = Schedule(**entry.get("schedule", {}))
            entry["shaping"] = Shaping(**entry.get("shaping", {}))
            if entry.get("perpendicular_to"):
                entry["perpendicular_to"] = tuple(Prediction(**p) for p in entry["perpendicular_to"])
            guidances.append(Guidance(**entry))
        return cls(tuple(guidances), Prediction(**data.get("baseline", {})))
