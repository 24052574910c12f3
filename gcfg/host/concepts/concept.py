"""Concept models as MODELs of the host: loaded from files, converted from other MODELs, applied as adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nulltext.formats import checkpoint, stock_lora
from ...nulltext.formats.adapter import Adapter
from ...nulltext.formats.identify import Kind, identify, is_unet
from ...nulltext.formats.networks import network_weights
from ...nulltext.formats.provenance import Provenance, architecture_hash, fingerprint
from ...nulltext.tokens import Tokens, tokens_of
from .building import UNET, Blueprint, architecture, build, load_file, originals, shapes, weights

__all__ = ["UNET", "Blueprint", "Concept", "architecture", "build", "load", "originals", "shapes", "weights"]

CONCEPT = "gcfg_concept"
"""Under this key a concept MODEL carries its ``Concept`` as an attachment."""
READS_TEXT = ("It reads text, so as a concept it is measured under the empty prompt: connect that as the sampler's "
              "negative, and leave the conditioning of its guidance open.")


@dataclass(frozen=True)
class Concept:
    """What a concept MODEL is, kept with it.

    Attributes:
        kind: the kind of file that it came from or would be saved as.
        provenance: where it comes from.
        adapter: the adapter that was applied to the base, None for a model with weights of its own.
        strength: at which strength.
        patches_uuid: the host's mark of the MODEL's patches once the adapter was applied.
    """

    kind: Kind
    provenance: Provenance = field(default_factory=Provenance)
    adapter: Adapter | None = None
    strength: float = 1.0
    patches_uuid: object = None


def load(base: ModelPatcher, path: str, roots: Iterable[str] | None = None, strength: float = 1.0
         ) -> tuple[ModelPatcher, str]:
    """A concept MODEL from a file, and a description of it.

    Args:
        base: the model that the concept was made from; it gives the architecture, and adapters are applied to it.
        path: any kind of concept file, see ``identify.Kind``.
        roots: folders in which the file must lie.
        strength: of an adapter.
    """
    names, name = architecture(base), Path(path).name
    tensors, metadata = checkpoint.read(path, roots)
    provenance, kind = Provenance.from_metadata(metadata, name), identify(tensors)
    if kind in (Kind.ADAPTER, Kind.STOCK_LORA):
        biases = [key for key in names if key.endswith("attn2.to_out.0.bias")]
        adapter = (Adapter.from_tensors(tensors, name) if kind is Kind.ADAPTER else
                   stock_lora.from_stock_lora(tensors, weights(base, keys=biases), name))
        adapter.check(names, name)
        return (apply_adapter(base, adapter, strength, provenance, kind),
                describe(name, kind, tensors, base, provenance))
    content, kind = network_weights(tensors, names, name)
    text = describe(name, kind, content, base, provenance)
    blueprint = Blueprint.of(base)
    patcher = adopt(build(content, blueprint), base, Concept(kind, provenance))
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load_file, (str(checkpoint.locate(path, roots)), blueprint))
    return patcher, text


def adopt(patcher: ModelPatcher, base: ModelPatcher, concept: Concept) -> ModelPatcher:
    """Give a model that was built its ``Concept``, and the sampling that nodes have set on the base."""
    for name in ("model_sampling", "latent_format"):
        if name in base.object_patches:
            patcher.add_object_patch(name, base.object_patches[name])
    patcher.set_attachments(CONCEPT, concept)
    return patcher


def apply_adapter(base: ModelPatcher, adapter: Adapter, strength: float = 1.0, provenance: Provenance | None = None,
                  kind: Kind = Kind.ADAPTER) -> ModelPatcher:
    """A clone of the base with the adapter as ordinary patches, right in every sampler.

    In this order: low-rank pairs (the host's LoRA patches) and deltas ("diff") at ``strength``, then per block "set" of
    ``attn2.to_out.0.weight`` to zero and of its bias to the feature.
    """
    if CONCEPT in base.attachments and base.attachments[CONCEPT].adapter is not None:
        raise ValueError("the base model already carries a concept adapter; connect the model from before it.")
    patcher = base.clone()
    pairs = {}
    for layer, (up, down) in adapter.pairs.items():
        pairs |= {f"{UNET}{layer}.lora_up.weight": up, f"{UNET}{layer}.lora_down.weight": down}
    low_rank = comfy.lora.load_lora(pairs, {UNET + layer: f"{UNET}{layer}.weight" for layer in adapter.pairs})
    deltas = {UNET + key: ("diff", (delta,)) for key, delta in adapter.deltas.items()}
    fixed = {}
    for block, feature in adapter.features.items():
        fixed[f"{UNET}{block}.attn2.to_out.0.weight"] = ("set", (torch.zeros(1, 1),))
        fixed[f"{UNET}{block}.attn2.to_out.0.bias"] = ("set", (feature.reshape(-1),))
    for patches, scale in ((low_rank, strength), (deltas, strength), (fixed, 1.0)):
        missed = patches.keys() - set(patcher.add_patches(patches, scale)) if patches else ()
        if missed:
            raise RuntimeError(f"the host did not take the adapter's patch of '{sorted(missed)[0]}'.")
    concept = Concept(kind, provenance or Provenance(), adapter, strength, patcher.patches_uuid)
    patcher.set_attachments(CONCEPT, concept)
    return patcher


def stated(base: ModelPatcher, made_by: str, residual: Mapping[str, float] | None = None, notes: str = ""
           ) -> Provenance:
    """The provenance of something made from this base."""
    return Provenance(type(base.model.model_config).__name__, architecture_hash(architecture(base)),
                      fingerprint(originals(base)), made_by, residual or {}, notes)


def describe(name: str, kind: Kind, tensors: Mapping[str, Tensor], base: ModelPatcher, provenance: Provenance) -> str:
    """A concept file in a few lines, for people."""
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    lines = [f"{name}: {kind.value}, {len(tensors)} tensors in {', '.join(types)}, for "
             f"{provenance.architecture or type(base.model.model_config).__name__}"]
    if kind is Kind.FULL:
        lines.append("It still reads text. Convert to Null-Text Model makes a text-free concept model of it.")
    if kind is Kind.NULL_TOKENS:
        lines.append(in_words(tokens_of(tensors)))
    elif not is_unet(base.model.diffusion_model.state_dict()):
        lines.append(READS_TEXT)
    made_on = provenance.base_fingerprint if kind in (Kind.ADAPTER, Kind.STOCK_LORA) else ""
    if made_on and made_on != fingerprint(originals(base)):
        lines.append("Made on other base weights than the connected ones, so results may differ.")
    if provenance.residual:
        worst = max(provenance.residual, key=provenance.residual.get)
        lines.append(f"Calibration residual {provenance.mean_residual:.3f} on average, "
                     f"{provenance.residual[worst]:.3f} at most ({worst})")
    told = (("Made by", provenance.made_by), ("Notes", provenance.notes))
    return "\n".join([*lines, *(f"{what}: {words}" for what, words in told if words)])


def in_words(tokens: Mapping[str, Tokens]) -> str:
    """The null text of a transformer in a sentence."""
    part = next(iter(tokens.values()))
    return (f"Text-free: {len(tokens)} keys and values of its null prompt ({int(part.counts.sum())} tokens) are "
            "constants, exact.")
