"""One copy of the weights: adapters that act on some rows of a batch and leave the others alone.

The base, the base under other text, and any number of adapted models (concepts, LoRAs) run in one forward pass over
the base's weights. A layer y = W x becomes y = W x + s up (down x) for the rows of an adapter (arXiv 2106.09685,
equation 3, unmerged); a null-text concept's rows skip the cross-attention and take its constant instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class LayerDelta:
    """What an adapter adds to one layer.

    Attributes:
        pairs: ``up`` (out, rank) and ``down`` (rank, in) or (rank, in, *kernel), scale factors folded in.
        weight: difference of a norm's weight, (C,).
        bias: difference of the bias, (out,).
    """

    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> LayerDelta:
        """The same on another device, in another type."""
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, dtype)
        return LayerDelta(tuple((move(up), move(down)) for up, down in self.pairs), move(self.weight), move(self.bias))

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What is to be added to ``layer(x)``, for x (rows, ...)."""
        if isinstance(layer, nn.Conv2d):
            shift = 0.0 if self.bias is None else self.bias.view(-1, 1, 1)
            return sum((conv_delta(layer, x, up, down) for up, down in self.pairs), shift)
        if isinstance(layer, NORMS):
            return norm_delta(layer, x, self.weight, self.bias)
        shift = 0.0 if self.bias is None else self.bias
        return sum((F.linear(F.linear(x, down.flatten(1)), up) for up, down in self.pairs), shift)


def conv_delta(layer: nn.Conv2d, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A low-rank convolution: (rows, in, H, W) -> (rows, out, H', W')."""
    kernel = down.reshape(down.shape[0], x.shape[1], *layer.kernel_size)
    low = F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
    return F.conv2d(low, up[:, :, None, None])


def norm_delta(layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The change of a norm whose weight and bias change: both enter linearly."""
    shape = (1, -1, *[1] * (x.ndim - 2)) if isinstance(layer, nn.GroupNorm) else (-1,)
    added = torch.zeros_like(x) if bias is None else bias.view(shape).expand_as(x)
    if weight is None:
        return added
    plain = (F.group_norm(x, layer.num_groups, eps=layer.eps) if isinstance(layer, nn.GroupNorm)
             else F.layer_norm(x, layer.normalized_shape, eps=layer.eps))
    return plain * weight.view(shape) + added


@dataclass(frozen=True)
class RowAdapter:
    """An adapter for some rows of a batch.

    Attributes:
        layers: by name of a linear, convolution or norm layer.
        constants: by name of a cross-attention module: the output (C,) that takes its place.
    """

    layers: Mapping[str, LayerDelta] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> RowAdapter:
        """The same on another device, in another type."""
        return RowAdapter({name: delta.to(device, dtype) for name, delta in self.layers.items()},
                          {name: value.to(device, dtype) for name, value in self.constants.items()})


class Rows:
    """Which adapter (or None) each row of a batch takes."""

    def __init__(self, owners: Sequence[Hashable | None]):
        self.owners = tuple(owners)
        self._at: dict[Hashable, tuple[int, int] | list[int]] = {}
        for owner in dict.fromkeys(o for o in owners if o is not None):
            at = [i for i, o in enumerate(owners) if o == owner]
            self._at[owner] = (at[0], len(at)) if at[-1] - at[0] == len(at) - 1 else at
        self._without: dict[frozenset, tuple[list[int], Rows]] = {}

    def add_(self, owner: Hashable, layer: nn.Module, delta: LayerDelta, x: Tensor, y: Tensor) -> None:
        """Add an adapter's part to its rows of ``y = layer(x)``, in place."""
        at = self._at.get(owner)
        if at is None:
            return
        repeats, rest = divmod(x.shape[0], len(self.owners))  # some attention patches split rows into tiles
        if rest:
            raise RuntimeError(f"a layer runs on {x.shape[0]} rows of a batch of {len(self.owners)}, so an adapter "
                               "cannot act on its own rows; remove the patch that regroups the batch, or merge the "
                               "adapter into a model of its own.")
        if isinstance(at, tuple):
            start, length = at[0] * repeats, at[1] * repeats
            y.narrow(0, start, length).add_(delta(layer, x.narrow(0, start, length)))
        else:
            index = torch.tensor([i * repeats + r for i in at for r in range(repeats)], device=y.device)
            y.index_add_(0, index, delta(layer, x.index_select(0, index)).to(y.dtype))

    def without(self, owners: frozenset) -> tuple[list[int], Rows]:
        """The places of the rows that take none of these adapters, and what those take."""
        if owners not in self._without:
            kept = [i for i, o in enumerate(self.owners) if o not in owners]
            self._without[owners] = kept, Rows([self.owners[i] for i in kept])
        return self._without[owners]

    def has(self, owners: frozenset) -> bool:
        return any(owner in owners for owner in self._at)


class RowwiseNetwork:
    """Makes a network apply adapters to rows of its batches, while ``applied`` says which; no weight is changed.

    A context manager: the layers are as before once it is left.

    Args:
        network: holds the layers that the adapters name.
        adapters: by any key; on the network's device, in the type of its computation.
    """

    def __init__(self, network: nn.Module, adapters: Mapping[Hashable, RowAdapter]):
        self.network, self.adapters = network, adapters
        self.rows: Rows | None = None
        self._undo: list = []

    def __enter__(self) -> RowwiseNetwork:
        for name in dict.fromkeys(name for adapter in self.adapters.values() for name in adapter.layers):
            deltas = {key: a.layers[name] for key, a in self.adapters.items() if name in a.layers}
            layer = self.network.get_submodule(name)
            self._undo.append(layer.register_forward_hook(self._add_deltas(deltas)).remove)
        for name in dict.fromkeys(name for adapter in self.adapters.values() for name in adapter.constants):
            constants = {key: a.constants[name] for key, a in self.adapters.items() if name in a.constants}
            self._replace(self.network.get_submodule(name), constants)
        return self

    def __exit__(self, *_) -> None:
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def applied(self, owners: Sequence[Hashable | None]):
        """Within, each row of the network's batches takes the adapter of this key, or none."""
        outer, self.rows = self.rows, Rows(owners)
        try:
            yield
        finally:
            self.rows = outer

    def _add_deltas(self, deltas: Mapping[Hashable, LayerDelta]):
        def hook(layer: nn.Module, args: tuple, output: Tensor) -> None:
            if self.rows is not None:
                for key, delta in deltas.items():
                    self.rows.add_(key, layer, delta, args[0], output)
        return hook

    def _replace(self, attention: nn.Module, constants: Mapping[Hashable, Tensor]) -> None:
        """Let a cross-attention skip the rows of null-text adapters."""
        keys, forward = frozenset(constants), attention.forward

        def skipping(x: Tensor, *args, **kwargs) -> Tensor:
            rows = self.rows
            if rows is None or not rows.has(keys):
                return forward(x, *args, **kwargs)
            kept, others = rows.without(keys)
            full = torch.stack([constants.get(o, x.new_zeros(())).to(x).expand(x.shape[1:]) for o in rows.owners])
            if kept:
                def select(value):
                    whole = isinstance(value, Tensor) and value.shape[0] == len(rows.owners)
                    return value[kept] if whole else value
                self.rows = others
                try:
                    full[kept] = forward(select(x), *map(select, args), **{k: select(v) for k, v in kwargs.items()})
                finally:
                    self.rows = rows
            return full

        def overwrite(layer: nn.Module, args: tuple, output: Tensor) -> None:
            """Where an attention patch of another pack calls the projections itself."""
            if self.rows is not None and self.rows.has(keys):
                for i, owner in enumerate(self.rows.owners):
                    if owner in constants:
                        output[i] = constants[owner].to(output)
        attention.forward = skipping
        self._undo.append(lambda: attention.__dict__.pop("forward"))
        self._undo.append(attention.to_out[0].register_forward_hook(overwrite).remove)


def subtracted(delta: LayerDelta) -> LayerDelta:
    """The delta that takes another one away again."""
    return replace(delta, pairs=tuple((-up, down) for up, down in delta.pairs),
                   weight=None if delta.weight is None else -delta.weight,
                   bias=None if delta.bias is None else -delta.bias)
