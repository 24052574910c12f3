"""All settings of a training run, whether from a TOML file (settings_file.py) or from a node."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

METHODS = ("full", "LoRA", "LoHa", "LoKr")
CROPS = ("buckets", "square")
SCHEDULES = ("constant", "cosine")
TIMESTEPS = ("uniform", "logit-normal")
OPTIMIZERS = ("auto", "adamw", "adamw 8-bit", "adafactor", "lion", "prodigy")
PRECISIONS = ("auto", "float32", "bfloat16")
EMA_PRECISIONS = ("float32", "bfloat16")
MEMORY = ("auto", "24 GB", "16 GB", "12 GB", "8 GB")
_CHOICES = {"method": METHODS, "crop": CROPS, "schedule": SCHEDULES, "timesteps": TIMESTEPS,
            "optimizer": OPTIMIZERS, "precision": PRECISIONS,
            "memory": MEMORY, "checkpointing": ("auto", "on", "off"), "ema_device": ("auto", "model", "cpu"),
            "ema_precision": EMA_PRECISIONS}
FREE = {"target_steps", "save_every", "keep", "export_every", "preview_every", "preview_prompt", "preview_steps",
        "preview_scales", "preview_count", "held_out_every", "memory", "learning_rate", "schedule", "warm_up",
        "gradient_clip", "micro_batch", "checkpointing", "ema_device", "ema_precision", "compile", "shard", "optimizer",
        "precision", "folder", "checkpoint", "output", "comfyui", "tensorboard"}
"""Settings that may change when a run goes on."""


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it."""


@dataclass(frozen=True)
class Settings:
    """The paper's recipe unless told otherwise (arXiv 2312.08195, official code).

    Attributes:
        folder: pictures of the concept; sub-folders count.
        resolution: side of a square in pixels; buckets keep about its area.
        resolutions: further ones, such as "768, 1024"; every picture that is large enough is trained on at all of them.
        crop: "buckets" by aspect ratio, or "square" from the middle.
        flip: also train on the mirrored pictures.
        held_out: pictures that are never trained on, for the held-out loss; at most a tenth of all.
        run_name: name of the run folder; a run of that name goes on.
        target_steps: optimizer steps at which the run is complete.
        method: "full" trains all weights that are left in the null-text model, "LoRA" low-rank pairs on all linear and
            convolution layers, "LoHa" and "LoKr" these forms, under the empty prompt.
        rank: of the LoRA; of LoKr about the size of the smaller factor.
        memory: how much GPU memory to plan for.
        learning_rate: 1e-5 for "full"; 1e-4 suits "LoRA". A third of that for "lion", 1 for "prodigy".
        batch: pictures per optimizer step, over all micro-batches and processes.
        ema: keep a moving average of the weights, which is what is exported.
        ema_decay: of the average, reached after a warm-up.
        seed: of noise, order and initial values.
        save_every, keep: steps between saves of the whole state, and how many are kept.
        export_every: steps between concept models that are kept under the number of their step, at saves; 0 for none.
        preview_every: steps between previews, 0 for none.
        preview_prompt, preview_steps: control prompts of the previews, one a line, and their sampling steps.
        preview_scales, preview_count: concept scales that a preview shows side by side, and pictures for each.
        held_out_every: steps between measurements of the held-out loss, 0 for none.
        schedule, warm_up: the learning rate rises over ``warm_up`` steps, then is constant or falls as a cosine.
        weight_decay, gradient_clip: of AdamW; largest norm of the gradient, 0 for no clipping.
        min_snr, noise_offset: see ``objectives``; 0 is off.
        timesteps: "uniform", or "logit-normal", which favours the middle, as flow models are trained.
        undistill: guidance that was distilled into the base (Flux.1 dev, about 3.5), kept in training; 0 for others.
        repeats: how often pictures of sub-folders count in an epoch, such as "close_ups = 3, sketches = 2".
        optimizer, precision, micro_batch, checkpointing, ema_device: "auto" or 0 as the memory preset says.
        ema_precision: "bfloat16" keeps the average in half the memory, and half the space in every save.
        compile: compile the blocks with torch.compile, which needs a C++ compiler, on NVIDIA also Triton.
        shard: with torchrun, cut weights, average and optimizer state over the processes (FSDP2), for the method
            "full" on weights that do not fit one GPU.
        fused_backward: update weights as soon as their gradients are there, each clipped by itself; a step is one
            micro-batch of pictures of one shape.
        tensorboard: write events for TensorBoard where that package is installed.
        checkpoint, output, comfyui: of the command line: file of the base model, folder of the run folders, and the
            folder of ComfyUI.
    """

    folder: str = ""
    resolution: int = 512
    resolutions: str = ""
    crop: str = "buckets"
    flip: bool = True
    held_out: int = 16
    run_name: str = "concept"
    target_steps: int = 5000
    method: str = "full"
    rank: int = 16
    memory: str = "auto"
    learning_rate: float = 1e-5
    batch: int = 32
    ema: bool = True
    ema_decay: float = 0.9999
    seed: int = 0
    save_every: int = 250
    keep: int = 2
    export_every: int = 0
    preview_every: int = 250
    preview_prompt: str = ""
    preview_steps: int = 20
    preview_scales: str = "1, 1.5"
    preview_count: int = 2
    held_out_every: int = 50
    schedule: str = "constant"
    warm_up: int = 0
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    min_snr: float = 0.0
    noise_offset: float = 0.0
    timesteps: str = "uniform"
    undistill: float = 0.0
    repeats: str = ""
    optimizer: str = "auto"
    precision: str = "auto"
    micro_batch: int = 0
    checkpointing: str = "auto"
    ema_device: str = "auto"
    ema_precision: str = "float32"
    compile: bool = False
    shard: bool = False
    fused_backward: bool = False
    tensorboard: bool = True
    checkpoint: str = ""
    output: str = ""
    comfyui: str = ""

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = _CHOICES
    FREE: ClassVar[set[str]] = FREE
    PATHS: ClassVar[tuple[str, ...]] = ("folder", "checkpoint", "output", "comfyui")
    """Settings that are paths, or several of them separated by commas."""

    def __post_init__(self):
        for name, choices in self.CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        for name in ("resolution", "target_steps", "rank", "batch", "save_every", "keep", "preview_count"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise SettingsError(f"{field.name} is {value}; it must be a number from 0.")
        if not self.learning_rate:
            raise SettingsError("learning_rate is 0, with which nothing is learned; 1e-5 is usual.")
        if self.optimizer == "prodigy" and self.learning_rate < 0.01:
            raise SettingsError(f"learning_rate is {self.learning_rate}; prodigy finds the rate itself and multiplies "
                                "it by this number: set it to 1.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise SettingsError(f"ema_decay is {self.ema_decay}; it must be below 1.")
        if self.resolution % 64:
            raise SettingsError(f"resolution is {self.resolution}; it must be a multiple of 64.")
        if 0.0 < self.undistill <= 1.0:
            raise SettingsError(f"undistill is {self.undistill}; give the guidance that was distilled into the base, "
                                "above 1, or 0 for none.")
        _check_name(self.run_name)
        sizes_of(self.resolutions)
        self.concept_scales()
        self.times()

    def concept_scales(self) -> list[float]:
        """``preview_scales`` as numbers."""
        try:
            return [float(number) for number in self.preview_scales.replace(",", " ").split()] or [1.0]
        except ValueError:
            raise SettingsError(f"preview_scales is {self.preview_scales!r}; give numbers, such as 1, 1.5.") from None

    def times(self) -> dict[str, int]:
        """``repeats`` by sub-folder."""
        found = {}
        for entry in filter(None, (part.strip() for part in self.repeats.split(","))):
            folder, _, times = entry.rpartition("=")
            if not folder.strip() or not times.strip().isdecimal():
                raise SettingsError(f"repeats has '{entry}'; give folder = times, such as close_ups = 3.")
            found[folder.strip().strip("/")] = int(times)
        return found

    def prompts(self) -> list[str]:
        """The lines of ``preview_prompt``, the empty prompt if there are none."""
        return [line.strip() for line in self.preview_prompt.splitlines() if line.strip()] or [""]

    def changed(self, other: Settings) -> list[str]:
        """What differs from the settings of a run that this one would continue, of that which must not."""
        return [f"{f.name} was {getattr(other, f.name)!r}, now {getattr(self, f.name)!r}" for f in fields(self)
                if f.name not in self.FREE and getattr(self, f.name) != getattr(other, f.name)]

    def to_toml(self) -> str:
        """The settings as a TOML file, one line each."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in asdict(self).items())


def sizes_of(text: str) -> tuple[int, ...]:
    """Resolutions from a setting such as "768, 1024"; SettingsError if they are none."""
    parts = text.replace(",", " ").split()
    wrong = [part for part in parts if not part.isdecimal() or not int(part) or int(part) % 64]
    if wrong:
        raise SettingsError(f"resolutions has '{wrong[0]}'; give multiples of 64, such as 768, 1024.")
    return tuple(dict.fromkeys(map(int, parts)))


def _check_name(name: str) -> None:
    """A run name is one ordinary folder name."""
    if not name.strip() or name != Path(name).name or name.startswith(".") or any(c in name for c in '\\/:*?"<>|\0'):
        raise SettingsError(f"run_name is {name!r}; give a plain name for a folder, without / \\ : * ? \" < > |.")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
