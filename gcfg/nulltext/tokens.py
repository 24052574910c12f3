"""Null text of networks whose cross-attention reads many tokens: keys and values of the empty prompt as constants.

Exact wherever the projections to keys and values are given nothing but text, whatever the noise level (Wan, LTX-Video,
LTX-2, Cosmos Predict2). Unlike the constant output of a UNet's cross-attention it needs no calibration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import FEATURE

PROJECTIONS = ("k", "v", "to_k", "to_v", "k_proj", "v_proj")
"""What layers are called that make keys and values of what an attention reads."""
COUNTS = "null_text_counts"


@dataclass(frozen=True)
class Tokens:
    """What a projection gives for the null prompt.

    Attributes:
        values: (1, U, C), of runs of equal tokens the first.
        counts: (U,) float32: how long each run is.
    """

    values: Tensor
    counts: Tensor


class ConstantTokens(nn.Module):
    """A projection with a constant output: (1, U, C) repeated to (B, T, C), whatever the text is."""

    def __init__(self, tokens: Tokens):
        super().__init__()
        self.register_buffer(FEATURE, tokens.values)
        self.register_buffer(COUNTS, tokens.counts)

    def forward(self, x: Tensor) -> Tensor:
        feature = self.null_text_feature.to(x.device, x.dtype)
        whole = feature.repeat_interleave(self.null_text_counts.to(x.device, torch.long), dim=1)
        return whole.expand(x.shape[0], -1, -1)


def projections(keys: Iterable[str]) -> list[str]:
    """The projections that are constants in a state dict of these keys."""
    names = [key.removesuffix(f".{FEATURE}") for key in keys if key.endswith(f".{FEATURE}")]
    return [name for name in names if name.rpartition(".")[2] in PROJECTIONS]


def tokens_of(tensors: Mapping[str, Tensor]) -> dict[str, Tokens]:
    """The constants in a state dict, by projection."""
    return {name: Tokens(tensors[f"{name}.{FEATURE}"], tensors[f"{name}.{COUNTS}"]) for name in projections(tensors)}


def tensors_of(tokens: Mapping[str, Tokens]) -> dict[str, Tensor]:
    """The tensors of a state dict that holds these constants."""
    return ({f"{name}.{FEATURE}": part.values for name, part in tokens.items()} |
            {f"{name}.{COUNTS}": part.counts for name, part in tokens.items()})


def null_token_shapes(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
                      ) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network with the constants that ``tensors`` holds, of however many tokens.

    Args:
        shapes: names and shapes of the network that reads text.
    """
    found = dict(shapes)
    for name in projections(tensors):
        weight = found.pop(f"{name}.weight", (0,))
        found.pop(f"{name}.bias", None)
        count = tensors[f"{name}.{FEATURE}"].shape[1] if tensors[f"{name}.{FEATURE}"].ndim == 3 else 0
        found |= {f"{name}.{FEATURE}": (1, count, weight[0]), f"{name}.{COUNTS}": (count,)}
    return found


def replace_projections(network: nn.Module, tokens: Mapping[str, Tokens]) -> None:
    """Turn projections into constants in place; their attentions then disregard masks of the text."""
    for name, part in tokens.items():
        owner, _, leaf = name.rpartition(".")
        attention = network.get_submodule(owner)
        if not any(isinstance(child, ConstantTokens) for child in attention.children()):
            attention.register_forward_pre_hook(without_mask, with_kwargs=True)
        setattr(attention, leaf, ConstantTokens(part))


def has_constant_tokens(network: nn.Module) -> bool:
    """True if some projection of the network is a constant."""
    return any(isinstance(module, ConstantTokens) for module in network.modules())


def without_mask(attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook: the tokens that a mask had left are all there are."""
    return args, {**kwargs, "mask": None} if "mask" in kwargs else kwargs


class Watch:
    """What the projections of a network are given and give, over its forward passes of one row.

    Attributes:
        given: by projection, its input of the first pass.
        tokens: by projection, its output for the runs of equal tokens.
        varying: projections that were given something else in another pass.
        masks: by attention, which tokens of its text count, (T,) bool.
    """

    def __init__(self):
        self.given: dict[str, Tensor] = {}
        self.tokens: dict[str, Tokens] = {}
        self.varying: set[str] = set()
        self.masks: dict[str, Tensor] = {}

    def saw(self, name: str, x: Tensor, y: Tensor) -> None:
        if name in self.given:
            first = self.given[name]
            if first.shape != x.shape or not torch.equal(first, x):
                self.varying.add(name)
            return
        kept = self.masks.get(name.rpartition(".")[0])
        if kept is not None and x.shape[1] == len(kept):
            text, y = x[:, kept], y[:, kept]
        else:
            text = x
        starts, counts = runs(text[0])
        self.given[name] = x.detach().clone()
        self.tokens[name] = Tokens(y.detach()[:, starts].float().cpu(), counts.cpu())

    def null_text(self) -> dict[str, Tokens]:
        """The constants of all projections that are given the same in every pass: text and nothing else."""
        return {name: tokens for name, tokens in self.tokens.items() if name not in self.varying}


def runs(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where runs of equal tokens begin in (T, C), and how long they are, as float32."""
    new = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    new[1:] = (tokens[1:] != tokens[:-1]).any(-1)
    starts = new.nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([len(tokens)])])
    return starts, (ends - starts).float()


@contextlib.contextmanager
def watch(network: nn.Module) -> Iterator[Watch]:
    """Note what goes through the projections of a network; it is as before once the block is left."""
    seen, handles = Watch(), []
    attentions = {name.rpartition(".")[0] for name, module in network.named_modules()
                  if name.rpartition(".")[2] in PROJECTIONS and hasattr(module, "weight")}

    def note_mask(name: str, kwargs: dict) -> None:
        mask = kwargs.get("mask")
        if isinstance(mask, Tensor):
            kept = mask >= 0 if mask.is_floating_point() else mask != 0  # added to the scores, or which count
            seen.masks[name] = kept.reshape(-1, mask.shape[-1])[0]
    try:
        for owner in attentions:
            attention = network.get_submodule(owner)
            handles.append(attention.register_forward_pre_hook(
                lambda module, args, kwargs, owner=owner: note_mask(owner, kwargs), with_kwargs=True))
            for leaf, layer in attention.named_children():
                if leaf in PROJECTIONS:
                    handles.append(layer.register_forward_hook(
                        lambda module, args, out, name=f"{owner}.{leaf}": seen.saw(name, args[0], out)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replaced(network: nn.Module, tokens: Mapping[str, Tokens]) -> Iterator[None]:
    """The network with constants in the place of projections, for a while."""
    handles = []
    try:
        for owner in {name.rpartition(".")[0] for name in tokens}:
            handles.append(network.get_submodule(owner).register_forward_pre_hook(without_mask, with_kwargs=True))
        for name, part in tokens.items():
            constant = ConstantTokens(part)
            handles.append(network.get_submodule(name).register_forward_hook(
                lambda module, args, out, constant=constant: constant(args[0]).to(out.dtype)))
        yield
    finally:
        for handle in handles:
            handle.remove()
