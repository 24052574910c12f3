"""The captioned form of a host MODEL in training: its cross-attention listens, and part of its weights are trained."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.lora
import comfy.lora_convert
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....nulltext.attention import cross_attention_blocks
from ....training.memory import Plan
from ....training.weights.low_rank import LowRank
from ...concepts.concept import UNET
from . import lycoris
from .blocks import prepare
from .network import Network

KEYS_AND_VALUES, LORA, ROWS = "K and V", "LoRA", "rows"
METHODS = (KEYS_AND_VALUES, LORA, ROWS)
"""What is trained of the network for a subject: keys and values of its cross-attention (arXiv 2405.17532, 2212.04488),
low-rank pairs on all its layers, or nothing but the rows of new words."""


class Captioned(Network):
    """A base MODEL's network that reads text, of any class of the host, and the weights of it that are trained.

    Args:
        base: the MODEL; its weight patches (LoRAs) count.
        method: one of ``METHODS``, of which "K and V" needs a UNet, or of ``lycoris.KINDS``.
        rank, seed: of the LoRA.
        plan: how it is trained.
        device: where.

    Raises:
        ValueError: a model that cannot be trained so.
    """

    def __init__(self, base: ModelPatcher, method: str, rank: int, seed: int, plan: Plan, device: torch.device):
        super().__init__(base, plan, device, updated=method == KEYS_AND_VALUES)
        self.method = method
        prepare(cross_attention_blocks(self.network).values(), plan)
        self.parameters: dict[str, nn.Parameter] = {}
        if method == KEYS_AND_VALUES:
            self.parameters = self._keys_and_values()
            self.before = {name: value.detach().clone() for name, value in self.parameters.items()}
        elif method == LORA:
            self.pairs = LowRank(self.network, rank, seed, device)
            self.parameters = self.pairs.pairs
        elif method in lycoris.KINDS:
            self.pairs = lycoris.Lycoris(self.network, method, rank, seed, device)
            self.parameters = self.pairs.pairs

    def _keys_and_values(self) -> dict[str, nn.Parameter]:
        found = {name: parameter for name, parameter in self.network.named_parameters()
                 if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))}
        if not found:
            raise ValueError(f"{type(self.base.model.model_config).__name__} has no separate cross-attention whose "
                             f"keys and values could be trained; choose the method {LORA}.")
        for parameter in found.values():
            parameter.requires_grad_(True)
        return found

    def lora(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a LoRA file of the host, exact at strength 1, float32 on the CPU; empty for "rows".

        Args:
            trained: weights under the names of ``parameters``.
        """
        if self.method == KEYS_AND_VALUES:
            return {f"{UNET}{name.removesuffix('.weight')}.diff":
                    value.detach().cpu().float() - self.before[name].cpu().float() for name, value in trained.items()}
        if self.method in lycoris.KINDS:
            return {UNET + name: value for name, value in self.pairs.tensors(trained).items()}
        tensors = {}
        for name in self.parameters:
            layer, _, part = name.rpartition("/")
            value = trained[name].detach().to("cpu", torch.float32, copy=True)
            if part == "up":
                value = value.reshape(*value.shape, *[1] * (trained[f"{layer}/down"].ndim - 2))
            tensors[f"{UNET}{layer}.lora_{part}.weight"] = value
        return tensors


def with_lora(base: ModelPatcher, tensors: Mapping[str, Tensor], strength: float = 1.0) -> ModelPatcher:
    """A clone of the base with a LoRA file's tensors, as the host's own loader applies them.

    Raises:
        ValueError: tensors that belong to another model.
    """
    patcher = base.clone()
    names = comfy.lora.model_lora_keys_unet(patcher.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), names, log_missing=False)
    layers = {key.partition(".lora_")[0] if ".lora_" in key else key.rpartition(".")[0] for key in tensors}
    own = patcher.model.state_dict()
    fits = all(own[key].shape == patch[1][0].shape for key, patch in patches.items()
               if isinstance(patch, tuple) and patch[0] == "diff")
    if len(patches) < len(layers) or not fits or patches.keys() - set(patcher.add_patches(patches, strength)):
        raise ValueError(f"the LoRA does not belong to {type(base.model.model_config).__name__}; it was made for "
                         "another architecture.")
    return patcher
