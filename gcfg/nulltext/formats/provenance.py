"""What a concept file says about itself, in its safetensors metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .checkpoint import CheckpointError

FORMAT_VERSION = 1
_PREFIX = "gcfg."


@dataclass(frozen=True)
class Provenance:
    """Where a concept model comes from.

    Attributes:
        architecture: the base model's architecture, for people ("SD15").
        architecture_hash: ``architecture_hash`` of the base.
        base_fingerprint: ``fingerprint`` of the base's weights, empty if unknown.
        made_by: how it was made ("converted: 8 latents at t 550, 700, 850, 990, seed 0").
        residual: per block, how far attn2 was from the constant (see ``calibrate``).
        notes: what its trainer wants to be remembered.
    """

    architecture: str = ""
    architecture_hash: str = ""
    base_fingerprint: str = ""
    made_by: str = ""
    residual: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""

    def to_metadata(self, kind: str) -> dict[str, str]:
        """The safetensors metadata of a file of this ``kind``."""
        values = {"architecture": self.architecture, "architecture_hash": self.architecture_hash,
                  "base_fingerprint": self.base_fingerprint, "made_by": self.made_by, "notes": self.notes,
                  "residual": json.dumps(dict(self.residual)) if self.residual else ""}
        stated = {"format_version": str(FORMAT_VERSION), "kind": kind} | {k: v for k, v in values.items() if v}
        return {"format": "pt"} | {_PREFIX + key: value for key, value in stated.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], name: str = "the file") -> Provenance:
        """What the metadata say; files of others say nothing. A newer format than ours is refused."""
        stated = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
        version = stated.get("format_version", "1")
        if not version.isdecimal() or int(version) > FORMAT_VERSION:
            raise CheckpointError(f"{name}: written in concept format {version}, this version of GCFG reads up to "
                                  f"{FORMAT_VERSION}; update the pack.")
        try:
            residual = {str(k): float(v) for k, v in json.loads(stated.get("residual", "{}")).items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            residual = {}
        words = {key: stated.get(key, "") for key in
                 ("architecture", "architecture_hash", "base_fingerprint", "made_by", "notes")}
        return cls(residual=residual, **words)

    @property
    def mean_residual(self) -> float | None:
        """The residual averaged over the blocks, None if it was not measured."""
        return sum(self.residual.values()) / len(self.residual) if self.residual else None


def architecture_hash(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Twelve hex digits for the names and shapes of a UNet's weights."""
    lines = "\n".join(f"{key} {tuple(shapes[key])}" for key in sorted(shapes))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hex digits for a UNet's weights: up to 64 values of each tensor, spread over it, in half precision.

    Cheap enough for every load, the same for a model's float32 and float16 files, and different after any training.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        flat = tensors[key].detach().reshape(-1)
        step = max(1, flat.numel() // 64)
        digest.update(key.encode())
        digest.update(flat[::step][:64].to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
