"""What a run did, call by call: how large each guidance was, how they lay to each other, what it cost."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .recipe import Guidance
from .schedule import Progress

NAN = math.nan


@dataclass(frozen=True)
class Reading:
    """One call of the sampler's model in plain numbers; lists run over the guidances, dictionaries over the models.

    Attributes:
        sigma, progress: its noise level, and that as sampling progress, 0 (all noise) to 1 (done).
        scales: scale of each guidance here; 0 where it does not act.
        inside: whether the noise level lies in the guidance's window.
        sizes: RMS of what each guidance added, in units of the baseline's RMS, averaged over the samples; NaN where
            it did not act or the baseline was not evaluated.
        cosines: cosine between what two guidances added, averaged over the samples; NaN as above.
        run, reused, skipped: predictions that were evaluated, taken from an earlier call, and not needed.
        milliseconds: time of the forward passes on each set of weights.
    """

    sigma: float
    progress: float
    scales: list[float]
    inside: list[bool]
    sizes: list[float]
    cosines: list[list[float]]
    run: int
    reused: int
    skipped: int
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class _Call:
    """One call as it is recorded: ``gram`` (B, 1 + n, 1 + n) of the baseline and the n guidances in ``scales``."""

    sigma: float
    scales: dict[int, float]
    gram: Tensor | None
    run: int
    reused: int
    spans: list[tuple[str, Callable[[], float]]]


@dataclass
class Trace:
    """The record of one run; the next run empties it.

    Of the latents it keeps one small matrix of inner products a call, on their device: recording makes no device
    wait, reading does.

    Attributes:
        guidances: what is traced, by a key of the caller's.
        models: names for people of the sets of weights.
        predictions: how many predictions a call evaluates where every guidance acts.
    """

    guidances: Mapping[int, Guidance] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    predictions: int = 0
    progress: Progress | None = None
    calls: list[_Call] = field(default_factory=list)
    _spans: list[tuple[str, Callable[[], float]]] = field(default_factory=list)

    def begin(self, guidances: Mapping[int, Guidance], progress: Progress, predictions: int = 0,
              models: Mapping[str, str] | None = None) -> None:
        """Forget the last run and prepare for the next."""
        self.guidances, self.progress, self.predictions = dict(guidances), progress, predictions
        self.models, self.calls, self._spans = models or {}, [], []

    @contextmanager
    def timed(self, model: str, device: torch.device) -> Iterator[None]:
        """Time what runs inside as a forward pass of a model: on CUDA by events, elsewhere by the clock."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            yield
            end.record(stream)
            self._spans.append((model, lambda: _between(begin, end)))
        else:
            start = time.perf_counter()
            yield
            elapsed = 1e3 * (time.perf_counter() - start)
            self._spans.append((model, lambda: elapsed))

    def record(self, sigma: float, baseline: Tensor | None, added: Mapping[int, tuple[float, Tensor]], run: int = 0,
               reused: int = 0) -> None:
        """Record one call.

        Args:
            baseline: the baseline prediction (B, ...), or None if it was not evaluated.
            added: scale of each guidance that acted, and what it added, (B, ...).
            run, reused: predictions evaluated, and taken from an earlier call.
        """
        matrix = gram([baseline, *(value for _, value in added.values())]) if baseline is not None and added else None
        scales = {key: scale for key, (scale, _) in added.items()}
        self.calls.append(_Call(sigma, scales, matrix, run, reused, self._spans))
        self._spans = []

    @property
    def names(self) -> list[str]:
        """The guidances' names; a name that is there already gets a number."""
        names: list[str] = []
        for guidance in self.guidances.values():
            label, number = guidance.label, 2
            while label in names:
                label, number = f"{guidance.label} ({number})", number + 1
            names.append(label)
        return names

    @property
    def model_names(self) -> list[str]:
        """Names of the sets of weights that ran."""
        return list(dict.fromkeys(self.models.get(m, m) for call in self.calls for m, _ in call.spans))

    def read(self) -> list[Reading]:
        """Every call in plain numbers; waits for the device."""
        return [self._reading(call) for call in self.calls]

    def _reading(self, call: _Call) -> Reading:
        sizes, cosines = _sizes_and_cosines(call, list(self.guidances))
        milliseconds: dict[str, float] = {}
        for model, elapsed in call.spans:
            name = self.models.get(model, model)
            milliseconds[name] = milliseconds.get(name, 0.0) + elapsed()
        return Reading(
            call.sigma, self.progress(call.sigma), [call.scales.get(key, 0.0) for key in self.guidances],
            [self.progress.within(call.sigma, g.start, g.end) for g in self.guidances.values()], sizes, cosines,
            call.run, call.reused, max(0, self.predictions - call.run - call.reused), milliseconds)

    def csv(self) -> str:
        """A line a call and guidance; the columns of forward passes and times repeat for the guidances of a call."""
        names, models, text = self.names, self.model_names, io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["call", "sigma", "progress", "guidance", "scale", "in_window", "relative_norm",
                         *(f"cosine to {n}" for n in names), "passes_run", "passes_reused", "passes_skipped",
                         *(f"ms {m}" for m in models)])
        for number, r in enumerate(self.read(), start=1):
            cost = [r.run, r.reused, r.skipped, *(_text(r.milliseconds.get(m, NAN)) for m in models)]
            for i, name in enumerate(names):
                writer.writerow([number, _text(r.sigma), _text(r.progress), name, _text(r.scales[i]), int(r.inside[i]),
                                 _text(r.sizes[i]), *map(_text, r.cosines[i]), *cost])
        return text.getvalue()

    def table(self) -> str:
        """Markdown: for each guidance the calls in which it acted, and the means of its size and cosines there."""
        names, readings = self.names, self.read()
        lines = ["| guidance | calls | scale | relative norm | " + " | ".join(f"cosine to {n}" for n in names) + " |",
                 "|---" * (4 + len(names)) + "|"]
        for i, name in enumerate(names):
            acting = [r for r in readings if r.scales[i] != 0.0]
            cells = [mean([r.scales[i] for r in acting]), mean([r.sizes[i] for r in acting]),
                     *(mean([r.cosines[i][j] for r in acting]) for j in range(len(names)))]
            lines.append(f"| {name} | {len(acting)} | " + " | ".join(_text(c) or "-" for c in cells) + " |")
        return "\n".join(lines)


def gram(parts: Sequence[Tensor]) -> Tensor:
    """Inner products per sample: n tensors (B, ...) -> (B, n, n), float32."""
    rows = torch.stack(torch.broadcast_tensors(*parts), dim=1).detach().flatten(2).float()
    return rows @ rows.mT


def mean(values: Sequence[float]) -> float:
    """Mean of the numbers that are known; NaN if none is."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else NAN


def _sizes_and_cosines(call: _Call, keys: list[int]) -> tuple[list[float], list[list[float]]]:
    """From the inner products: ``|g_i| / |D_0|`` and ``<g_i, g_j> / (|g_i| |g_j|)``, averaged over the samples."""
    sizes, cosines = [NAN] * len(keys), [[NAN] * len(keys) for _ in keys]
    if call.gram is None:
        return sizes, cosines
    inner = call.gram.double().cpu()
    norms = inner.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt()
    angles = inner / (norms[:, :, None] * norms[:, None, :])  # NaN where a guidance is zero
    at = [keys.index(key) for key in call.scales]
    for row, i in enumerate(at, start=1):
        sizes[i] = float((norms[:, row] / norms[:, 0]).mean())
        for column, j in enumerate(at, start=1):
            cosines[i][j] = mean(angles[:, row, column].tolist())
    return sizes, cosines


def _between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return begin.elapsed_time(end)


def _text(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.6g}"
