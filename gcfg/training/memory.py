"""Memory presets: what a run trades for a smaller footprint. The effective batch stays what the settings say."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import Settings, SettingsError

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """How a run is computed.

    Attributes:
        micro_batch: pictures per forward and backward pass.
        precision: type of the trained weights: "float32" (computed under autocast on a GPU) or "bfloat16" (updates
            rounded stochastically).
        optimizer: see ``optimizers``.
        checkpointing: recompute the transformer blocks in the backward pass.
        ema_on_cpu: keep the moving average in the machine's memory.
        resident: bytes of a LoRA's frozen base that stay on the GPU; what exceeds them waits in the machine's memory
            and is copied layer by layer where it is used. None for all of it.
        compiled: compile the transformer blocks.
        shard: cut the weights over the processes, see ``weights.shards``.
    """

    micro_batch: int = 4
    precision: str = "float32"
    optimizer: str = "adamw"
    checkpointing: bool = False
    ema_on_cpu: bool = False
    resident: int | None = None
    compiled: bool = False
    shard: bool = False


RESIDENT = 2 / 3
"""Part of a GPU's memory for the frozen base of a LoRA; the rest is for activations, the pairs and one layer in use."""
PRESETS = {
    "24 GB": Plan(4, "float32", "adamw", checkpointing=False, ema_on_cpu=True),
    "16 GB": Plan(2, "float32", "adamw 8-bit", checkpointing=True, ema_on_cpu=True),
    "12 GB": Plan(2, "bfloat16", "adamw 8-bit", checkpointing=True, ema_on_cpu=True),
    "8 GB": Plan(1, "bfloat16", "adafactor", checkpointing=True, ema_on_cpu=True),
}


def plan(settings: Settings, available: int | None = None, has_8_bit: bool = True, processes: int = 1) -> Plan:
    """The plan of a run.

    Args:
        settings: what the preset says is overridden by settings that are not "auto".
        available: bytes of the GPU for "auto"; None where there is no GPU.
        has_8_bit: whether bitsandbytes is there; without it a preset takes Adafactor in place of 8-bit AdamW.
        processes: that train; one alone has all the weights.

    Raises:
        SettingsError: fused backward, or cut weights, cannot run with these settings.
    """
    size = available
    if settings.memory != "auto":
        preset, size = PRESETS[settings.memory], GIB * int(settings.memory.split()[0])
    elif available is None:
        preset = Plan()
    elif available >= 30 * GIB:
        preset = Plan(8)
    else:
        fitting = [p for name, p in PRESETS.items() if available >= 0.95 * GIB * int(name.split()[0])]
        preset = fitting[0] if fitting else PRESETS["8 GB"]
    optimizer = preset.optimizer if settings.optimizer == "auto" else settings.optimizer
    if optimizer == "adamw 8-bit" and settings.optimizer == "auto" and not has_8_bit:
        optimizer = "adafactor"
    if settings.shard and settings.method != "full":
        raise SettingsError(f"shard cuts the weights that the method full trains; the base of {settings.method} is "
                            "frozen and every process has it whole: switch shard off.")
    shard = settings.shard and processes > 1
    if shard and settings.optimizer == "auto":
        optimizer = "adamw"
    if settings.fused_backward and 0 < settings.micro_batch < settings.batch:
        raise SettingsError("fused_backward keeps no gradients, so a step must be one micro-batch: set micro_batch to "
                            "the batch, or switch fused_backward off.")
    micro_batch = settings.batch if settings.fused_backward else settings.micro_batch or preset.micro_batch
    return Plan(
        min(micro_batch, settings.batch),
        preset.precision if settings.precision == "auto" else settings.precision,
        optimizer,
        preset.checkpointing if settings.checkpointing == "auto" else settings.checkpointing == "on",
        preset.ema_on_cpu if settings.ema_device == "auto" else settings.ema_device == "cpu",
        None if size is None else int(RESIDENT * size), settings.compile, shard)
