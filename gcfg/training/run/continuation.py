"""Going on elsewhere or later: what of a run must be as it was, what follows its state, and what may differ."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..data.dataset import Latent
from ..memory import Plan
from ..randomness import generator
from ..settings import Settings, SettingsError

Notes = Mapping[str, object]
"""The plain values of a state."""

INPUTS = {"base": "base model", "patches": "set of LoRAs or patches on the base model", "sampling":
          "model sampling (prediction type, shift or noise levels)", "vae": "autoencoder", "text": "text encoder"}
"""Notes on what is connected to a run, and their names for people."""
SKETCH_TOLERANCE = 0.01
"""How far sketches of the same weights may differ."""
TEXT_TOLERANCE = 0.3
"""How far sketches of a text's features may: a large text encoder that is loaded in float8 gives others."""


def check_inputs(before: Notes, now: Notes, run_name: str) -> None:
    """Refuse to go on with other inputs than a run was begun with (ValueError)."""
    changed = [INPUTS[name] for name in INPUTS if name in before and not _alike(
        before[name], now.get(name), TEXT_TOLERANCE if name == "text" else SKETCH_TOLERANCE)]
    if changed:
        raise ValueError(f"the run '{run_name}' was begun on another {', another '.join(changed)}; connect that one, "
                         "or choose another run_name.")


def resolved(plan: Plan, settings: Settings, before: Notes) -> Plan:
    """The plan of a run that goes on: whatever this machine would choose, its optimizer and precision stay.

    They decide what is in the state; the size of micro-batches, checkpointing and the place of the average do not.

    Raises:
        SettingsError: the settings name others.
    """
    for name in ("optimizer", "precision"):
        wanted, kept = getattr(settings, name), before.get(name)
        if kept and wanted not in ("auto", kept):
            raise SettingsError(f"the run '{settings.run_name}' is trained with {name} '{kept}', and its state cannot "
                                f"become one of '{wanted}'; set {name} to auto, or choose another run_name.")
    kept = {name: before[name] for name in ("optimizer", "precision") if name in before}
    if any(getattr(plan, name) != value for name, value in kept.items()):
        logging.info("GCFG: the run goes on with %s, as it was begun.", ", ".join(kept.values()))
    return replace(plan, **kept)


def said_of_pictures(before: Notes, latents: Sequence[Latent]) -> str:
    """How the pictures differ from those of the state; empty if they do not."""
    known, now = set(before.get("pictures", ())), {latent.content for latent in latents}
    if not known or known == now:
        return ""
    return (f"the pictures have changed since this run was last saved: {len(now - known)} new ones, "
            f"{len(known - now)} gone. Held-out pictures stay held out, and new ones are trained on.")


def said_of_threads(before: Notes, device: torch.device) -> str:
    """On a CPU the bits of a result depend on the number of threads."""
    threads, now = before.get("threads"), torch.get_num_threads()
    if device.type != "cpu" or threads in (None, now):
        return ""
    return (f"the run was computed with {threads} threads and goes on with {now}: as exact, but not the same to the "
            "last bit.")


def sketch(tensors: Mapping[str, Tensor], count: int = 64, plain: Callable[[str], Tensor] | None = None
           ) -> list[float]:
    """Random projections of up to ``count`` tensors, each in units of its own norm.

    Unlike a hash they hardly change when weights are loaded in another type, as another GPU may want them: by 0.002 for
    bfloat16 (one standard deviation). Weights half a percent and more apart differ by more than ``SKETCH_TOLERANCE``.

    Args:
        tensors: by name.
        count: how many of them are looked at.
        plain: gives a tensor by its name where those of ``tensors`` are quantized.
    """
    names = sorted(name for name, tensor in tensors.items() if tensor.ndim > 1 and tensor.is_floating_point())
    numbers = []
    for name in names[::max(1, len(names) // count)][:count]:
        flat = (plain(name) if plain else tensors[name]).detach().reshape(-1)
        values = flat[::max(1, len(flat) // 65536)][:65536].to("cpu", torch.float32)
        signs = torch.randint(0, 2, values.shape, generator=generator("sketch", name)) * 2.0 - 1.0
        numbers.append(round(float((values * signs).sum() / values.norm().clamp(min=1e-30)), 4))
    return numbers


def sketch_of_text(features: Tensor, count: int = 16) -> list[float]:
    """A sketch of a text's features (1, T, C), in several parts, so that two encoders hardly agree in all of them."""
    parts = features.detach().reshape(1, -1).tensor_split(count, dim=1)
    return sketch({f"{k:02}": part for k, part in enumerate(parts)})


def _alike(a: object, b: object, tolerance: float) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))
    return a == b
