"""One copy of the weights: adapters that act on some rows of a batch and leave the others alone.

The base, the base under other text, and any number of adapted models (concepts, LoRAs) run in one forward pass over
the base's weights; a null-text concept's rows skip the cross-attention and take its constant instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .batch import Regrouped, Rows
from .changes import LayerChange
from .differences import Movable
from .hooked import Reads, hook, uncompiled


@dataclass(frozen=True)
class RowAdapter(Movable):
    """An adapter for some rows of a batch.

    Attributes:
        layers: by name of a linear, convolution or norm layer.
        constants: by name of a cross-attention module: the output (C,) that takes its place and that of its layers.
    """

    layers: Mapping[str, LayerChange] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)


class RowwiseNetwork:
    """Makes a network apply adapters to rows of its batches, while ``applied`` says which; no weight is changed.

    A context manager: the layers are as before once it is left. Networks qualify by what they do: the layers have to
    see the batch first, or the rows of each adapter have to come in a batch of their own.

    Args:
        network: holds the layers that the adapters name.
        adapters: by any key.
        mixes: whether something in it looks at a whole batch.

    Attributes:
        regroups: for whoever calls it: whether it has turned out to need each adapter's rows by themselves.
        mixes: the same: whether it needs each row by itself.
    """

    def __init__(self, network: nn.Module, adapters: Mapping[Hashable, RowAdapter], mixes: bool = False):
        self.network, self.adapters = network, adapters
        self.regroups, self.mixes = False, mixes
        self.rows: Rows | None = None
        self._called: set[str] = set()  # layers
        self._bypassed: set[str] = set()
        self._watched: set[Hashable] = set()  # adapters
        self._undo: list = []

    def __enter__(self) -> RowwiseNetwork:
        for name in dict.fromkeys(name for adapter in self.adapters.values() for name in adapter.layers):
            changes = {key: a.layers[name] for key, a in self.adapters.items() if name in a.layers}
            self._undo.append(hook(self.network.get_submodule(name), self._make_changes(name, changes)))
        for name in dict.fromkeys(name for adapter in self.adapters.values() for name in adapter.constants):
            constants = {key: a.constants[name] for key, a in self.adapters.items() if name in a.constants}
            self._replace(self.network.get_submodule(name), constants)
        return self

    def __exit__(self, *_) -> None:
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def applied(self, owners: Sequence[Hashable | None], whole: bool = True):
        """Within, each row of the network's batches takes the adapter of this key, or none.

        Args:
            whole: the whole network runs, so that layers that are not called are not used.

        Raises:
            Regrouped: the network treats these rows in a way that only a batch with equal owners allows, which
                ``regroups`` keeps. What was computed is wrong then and has to be computed again.
        """
        rows = Rows(owners)
        names = {name for owner in rows.at for name in self.adapters[owner].layers}
        if not rows.uniform and names & self._bypassed:
            raise self._regrouped(names & self._bypassed)
        new = set(rows.at) - self._watched if whole else set()
        outer, self.rows = self.rows, rows
        try:
            with self._exchanged(owners[0], names & self._bypassed):
                with self._reads(names) if new else nullcontext() as reads:
                    yield
        except Regrouped:
            self.regroups = True
            raise
        finally:
            self.rows = outer
        if new:
            self._watched |= new
            if missed := reads.seen - self._called:
                self._bypassed |= missed
                self.regroups = True
                raise self._regrouped(missed)

    def _reads(self, names: Iterable[str]) -> Reads:
        """Watch for functions that take the weights of layers."""
        layers = {name: self.network.get_submodule(name) for name in names}
        return Reads({id(p): name for name, layer in layers.items() for p in layer.parameters(recurse=False)})

    @staticmethod
    def _regrouped(names: Iterable[str]) -> Regrouped:
        return Regrouped(f"the network reads the weights of '{min(names)}' by itself")

    @contextmanager
    def _exchanged(self, owner: Hashable, names: Iterable[str]):
        """Give layers whose weights the network reads by itself the changed weights, for a batch of one owner."""
        before = []
        for name in names:
            layer, change = self.network.get_submodule(name), self.adapters[owner].layers[name]
            if change.steps or change.outputs:
                raise RuntimeError(f"the network reads the weights of '{name}' without calling the layer, so they "
                                   "cannot be changed for some rows only; load the model a second time for the LoRA.")
            for parameter, difference in (("weight", change.weight), ("bias", change.bias)):
                if difference is not None:
                    old = layer._parameters[parameter]
                    before.append((layer, parameter, old))
                    changed = (old.float() + difference.to(old.device, torch.float32)).to(old.dtype)
                    layer._parameters[parameter] = nn.Parameter(changed, requires_grad=False)
        try:
            yield
        finally:
            for layer, parameter, old in before:
                layer._parameters[parameter] = old

    def _make_changes(self, name: str, changes: Mapping[Hashable, LayerChange]):
        placed: dict[tuple, LayerChange] = {}

        def after(layer: nn.Module, args: tuple, output: Tensor) -> None:
            self._called.add(name)
            if self.rows is None:
                return
            for key, at in self.rows.at.items():
                if key in changes:
                    place = key, output.device, output.dtype
                    if place not in placed:
                        placed[place] = changes[key].to(output.device, output.dtype)
                    self.rows.change_(at, layer, placed[place], args[0], output)
        return after

    def _replace(self, attention: nn.Module, constants: Mapping[Hashable, Tensor]) -> None:
        """Let a cross-attention skip the rows of null-text adapters."""
        keys, forward, own = frozenset(constants), attention.forward, attention.__dict__.get("forward")

        def skipping(x: Tensor, *args, **kwargs) -> Tensor:
            rows = self.rows
            if rows is None or not rows.has(keys):
                return forward(x, *args, **kwargs)
            if rows.uniform:
                return constants[rows.owners[0]].to(x).expand_as(x).clone()
            if x.shape[0] != len(rows.owners):
                raise Regrouped(f"a cross-attention sees {x.shape[0]} rows of a batch of {len(rows.owners)}")
            kept, others = rows.without(keys)
            full = torch.stack([constants.get(o, x.new_zeros(())).to(x).expand(x.shape[1:]) for o in rows.owners])
            if kept:
                def select(value):
                    whole = isinstance(value, Tensor) and value.shape[:1] == (len(rows.owners),)
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

        def undo() -> None:
            del attention.forward
            if own is not None:  # a pack's
                attention.forward = own
        attention.forward = uncompiled(skipping)
        self._undo += [undo, hook(attention.to_out[0], overwrite)]
