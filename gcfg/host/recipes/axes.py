"""What a grid varies along an axis: scales, windows and references of guidances, samplers, seeds, models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import comfy.samplers
from comfy.model_patcher import ModelPatcher

from ..sampling.chain import REFERENCES, Link

CONCEPT = "Concept"
"""Name of the guidance of the concept model."""


@dataclass(frozen=True, eq=False)
class Cell:
    """What one cell of a grid samples with; ``models`` are those that the model axis may choose from, by name."""

    model: ModelPatcher
    links: tuple[Link, ...]
    control_scale: float
    sampler_name: str
    scheduler: str
    steps: int
    seed: int
    models: dict[str, ModelPatcher] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Value:
    """One place of an axis: its label, and what it makes of a cell."""

    label: str
    apply: Callable[[Cell], Cell]


def _window(text: str) -> tuple[float, float]:
    start, end = map(float, text.split("-"))
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError
    return start, end


def _one_of(choices) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text
    return read


def _of_guidance(cell: Cell, name: str, **changes) -> Cell:
    """The cell, the guidances of that name changed."""
    names = [link.name or f"Guidance {number}" for number, link in enumerate(cell.links, 1)]
    if name not in names:
        raise ValueError(f"There is no guidance named '{name}'; there are {', '.join(names) or 'none'}.")
    links = (replace(link, **changes) if own == name else link for own, link in zip(names, cell.links, strict=True))
    return replace(cell, links=tuple(links))


def _model(cell: Cell, name: str) -> Cell:
    if name not in cell.models:
        raise ValueError(f"The axis 'model' needs the input '{name}'; connect it.")
    return replace(cell, model=cell.models[name])


Change = Callable[[Cell, str, object], Cell]
AXES: dict[str, tuple[Callable[[str], object], str, Change]] = {
    "scale": (float, "numbers such as 0, 1, 2.5", lambda cell, name, v: _of_guidance(cell, name, scale=v)),
    "window": (_window, "windows of sampling progress such as 0-1, 0.2-0.8",
               lambda cell, name, v: _of_guidance(cell, name, start=v[0], end=v[1])),
    "reference": (_one_of(REFERENCES[:2]), " or ".join(REFERENCES[:2]),
                  lambda cell, name, v: _of_guidance(cell, name, reference=v)),
    "control scale": (float, "numbers such as 1, 2.5, 5", lambda cell, name, v: replace(cell, control_scale=v)),
    "sampler": (_one_of(comfy.samplers.KSampler.SAMPLERS), "names of samplers such as euler, dpmpp_2m",
                lambda cell, name, v: replace(cell, sampler_name=v)),
    "scheduler": (_one_of(comfy.samplers.KSampler.SCHEDULERS), "names of schedulers such as normal, karras",
                  lambda cell, name, v: replace(cell, scheduler=v)),
    "steps": (int, "whole numbers such as 10, 20", lambda cell, name, v: replace(cell, steps=v)),
    "seed": (int, "whole numbers such as 1, 2, 3", lambda cell, name, v: replace(cell, seed=v)),
    "model": (_one_of(("model", "other_model")), "model, other_model", lambda cell, name, v: _model(cell, v)),
}
"""By name: how a value is read, what it looks like, what it makes of a cell. The first three belong to a guidance."""


def axis(kind: str, values: str, guidance: str) -> list[Value]:
    """An axis of a grid.

    Args:
        kind: a key of ``AXES``.
        values: separated by commas, semicolons or line breaks.
        guidance: the name of the guidance that scales, windows and references belong to.

    Raises:
        ValueError: no value, or one that cannot be read.
    """
    read, looks, change = AXES[kind]
    entries = [entry.strip() for entry in values.replace(";", ",").replace("\n", ",").split(",") if entry.strip()]
    try:
        parsed = [read(entry) for entry in entries]
    except (ValueError, TypeError):
        parsed = []
    if not parsed:
        raise ValueError(f"The values of the axis '{kind}' must be {looks}, separated by commas, not '{values}'.")
    subject = {"scale": guidance, "window": f"{guidance},", "reference": f"{guidance} from"}.get(kind, kind)

    def value(entry: str, new: object) -> Value:
        return Value(f"{subject} {entry}", lambda cell: change(cell, guidance, new))
    return [value(entry, new) for entry, new in zip(entries, parsed, strict=True)]
