"""The host's patches of a weight in unmerged form: as steps that change the layer's output on rows.

What a patch does to a weight is asked of the host's own adapter classes wherever that is possible, so that rows and
merged weights agree on every version of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.weight_adapter import (
    BOFTAdapter,
    GLoRAAdapter,
    LoHaAdapter,
    LoKrAdapter,
    LoRAAdapter,
    OFTAdapter,
    WeightAdapterBase,
)
from torch import Tensor, nn

from ...rows.changes import Added, Decomposed, InputMixed, Slice, Turned, additive
from ...rows.differences import Dense, Difference, Kronecker, LowRank, held, linear_map, moved

ADDED, TURNING = (LoRAAdapter, LoHaAdapter, LoKrAdapter), (OFTAdapter, BOFTAdapter)
DORA = {LoRAAdapter: 4, LoHaAdapter: 7, LoKrAdapter: 8, GLoRAAdapter: 5, OFTAdapter: 3, BOFTAdapter: 3}
"""Where the weights of an adapter hold the magnitude of DoRA."""


class NotRowwise(Exception):
    """A clone's patches cannot be applied to rows; the message says which and why."""


@dataclass(frozen=True)
class Factored(Difference):
    """A difference as large as the weight that the host makes of an adapter's factors, at every call anew.

    Attributes:
        adapter: of the host, without magnitude.
        shape: of the weight.
        function: what the host does to the difference, or None.
    """

    adapter: object
    shape: tuple[int, ...]
    strength: float
    function: Callable | None = None

    @property
    def nbytes(self) -> int:
        return held(tuple(self.adapter.weights))

    def to(self, device: torch.device, dtype: torch.dtype) -> Factored:
        return Factored(on(self.adapter, device, dtype), self.shape, self.strength, self.function)

    def weight(self, device: torch.device | str = "cpu") -> Tensor:
        """The difference itself, float32."""
        zero = torch.zeros(self.shape, device=device)
        return self.adapter.calculate_weight(zero, "", self.strength, 1.0, None, self.function or unchanged)

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        return linear_map(layer, x, self.weight(x.device).to(x.dtype))


def unchanged(x: Tensor) -> Tensor:
    return x


def on(adapter, device: torch.device, dtype: torch.dtype):
    """A copy of an adapter of the host with its tensors on another device."""
    made = copy(adapter)
    made.weights = tuple(moved(w, device, dtype) if isinstance(w, Tensor) else w for w in adapter.weights)
    return made


def unmerged(patch: Sequence, key: str, layer: nn.Module, shape: tuple[int, ...], before: Callable[[], Tensor]):
    """One patch of the host, ``(strength, data, strength_model, offset, function)``, as a step.

    Args:
        shape: of the weight that ``key`` names.
        before: makes the weight that the patch is applied to, float32.

    Raises:
        NotRowwise: there is no such form of it.
    """
    strength, data, keep, offset, function = patch
    part = before
    if offset is not None:
        shape = tuple(offset[2] if dim == offset[0] else size for dim, size in enumerate(shape))
        part = lambda: before().narrow(*offset)  # noqa: E731
    step = _step(data, strength, keep, function, layer, shape, part, key)
    if offset is None:
        return step
    if offset[0] > 1 or (offset[0] == 1 and not additive(step)):
        raise NotRowwise(f"the patch of {key} scales or turns a slice of its inputs")
    return Slice(step, *offset)


def _step(data, strength: float, keep: float, function, layer: nn.Module, shape, before, key: str):
    if isinstance(data, tuple) and (len(data) == 1 or data[0] == "diff"):
        content = data[-1] if len(data) == 2 else data
        if len(content) == 1 and content[0].shape == shape:
            weight = content[0] if function is None else function(content[0].float())
            return Added(Dense(weight, strength), keep)
    kind = type(data)
    if kind not in DORA or (isinstance(data, LoRAAdapter) and (*data.weights, None, None)[5] is not None):
        raise NotRowwise(f"the patch of {key} has no form for rows")
    magnitude = data.weights[DORA[kind]] if len(data.weights) > DORA[kind] else None
    if kind in TURNING:
        if magnitude is not None or function is not None:
            raise NotRowwise(f"the patch of {key} turns and scales its weight")
        ones = (1,) * (len(shape) - 2)  # as many dimensions as the weight has

        def turn(z: Tensor) -> Tensor:
            whole = z.clone().view(*z.shape, *ones)
            return data.calculate_weight(whole, key, strength, 1.0, None, unchanged).view(z.shape)
        return Turned(turn, keep)
    if kind is GLoRAAdapter:
        return _glora(data, strength, keep, function, shape, magnitude, key)
    plain = without_magnitude(data)
    if magnitude is None:
        return Added(difference(plain, strength, function, layer, shape), keep)
    return _decomposed(plain, magnitude, strength, keep, function, layer, shape, before)


def only_adds(data) -> bool:
    """True if the data of a patch add to a weight and do nothing else to it, whatever that weight is."""
    if not isinstance(data, WeightAdapterBase):
        return len(data) == 1 or data[0] in ("diff", "model_as_lora")
    at = DORA.get(type(data))
    return isinstance(data, ADDED) and (len(data.weights) <= at or data.weights[at] is None)


def without_magnitude(adapter):
    """A copy of an adapter of the host without its DoRA scale."""
    made, at = copy(adapter), DORA[type(adapter)]
    made.weights = tuple(None if i == at else w for i, w in enumerate(adapter.weights))
    return made


def difference(adapter, strength: float, function, layer: nn.Module, shape: tuple[int, ...]) -> Difference:
    """An adapter that adds to its weight, in the form that costs least on rows."""
    whole = Factored(adapter, shape, strength, function)
    grouped = getattr(layer, "groups", 1) != 1
    if function is not None or grouped:
        return whole
    if isinstance(adapter, LoRAAdapter) and adapter.weights[3] is None:
        up, down, alpha, *_ = adapter.weights
        scale = strength * (alpha / down.shape[0] if alpha is not None else 1.0)
        return LowRank(up.flatten(1).float() * scale, down.float().reshape(-1, *shape[1:]))
    if isinstance(adapter, LoRAAdapter):  # LoCon with a kernel in the middle
        up, down, alpha, mid, *_ = (w.float() if isinstance(w, Tensor) else w for w in adapter.weights)
        scale = strength * (alpha / down.shape[0] if alpha is not None else 1.0)
        return LowRank(up.flatten(1) * scale, torch.einsum("m n ..., n j -> m j ...", mid, down.flatten(1)))
    if isinstance(adapter, LoHaAdapter) and adapter.weights[5] is None:
        return _hadamard(adapter, strength, shape) or whole
    if isinstance(adapter, LoKrAdapter) and len(shape) == 2:
        return _kronecker(adapter, strength)
    return whole


def _hadamard(adapter: LoHaAdapter, strength: float, shape: tuple[int, ...]) -> LowRank | None:
    """(a b) * (c d) has rank r^2 (arXiv 2108.06098, proposition 1): the products of columns and of rows."""
    a, b, alpha, c, d, *_ = (w.float() if isinstance(w, Tensor) else w for w in adapter.weights)
    rank = b.shape[0] * d.shape[0]
    if 4 * rank > min(a.shape[0], b.shape[1]):
        return None
    scale = strength * (alpha / b.shape[0] if alpha is not None else 1.0)
    up = (a[:, :, None] * c[:, None, :]).flatten(1)
    down = (b[:, None, :] * d[None, :, :]).flatten(0, 1)
    return LowRank(up * scale, down.reshape(rank, *shape[1:]))


def _kronecker(adapter: LoKrAdapter, strength: float) -> Kronecker:
    left, right, alpha, left_a, left_b, right_a, right_b, *_ = (
        w.float() if isinstance(w, Tensor) else w for w in adapter.weights)
    rank = None
    if left is None:
        left, rank = left_a @ left_b, left_b.shape[0]
    if right is None:
        right, rank = right_a @ right_b, right_b.shape[0]
    scale = alpha / rank if alpha is not None and rank is not None else 1.0
    return Kronecker(left * (strength * scale), right)


def _glora(adapter: GLoRAAdapter, strength: float, keep: float, function, shape, magnitude, key: str) -> InputMixed:
    a1, a2, b1, b2, alpha = (w.float().flatten(1) if isinstance(w, Tensor) else w for w in adapter.weights[:5])
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1] and not (
        b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0])
    if magnitude is not None or function is not None or old and len(shape) > 2:
        raise NotRowwise(f"the GLoRA of {key} is of a kind without a form for rows")
    # square weights of both orders at once: the host takes the old one
    old |= a1.shape == a2.shape == b1.shape == b2.shape and a2.shape[0] == shape[0] == shape[1]
    first, second, up, down = (a2, a1, b2, b1) if old else (a1, a2, b1, b2)
    scale = strength * (alpha / first.shape[1] if alpha is not None else 1.0)
    return InputMixed(first * scale, second, LowRank(up * scale, down.reshape(-1, *shape[1:])), keep)


def _decomposed(adapter, magnitude: Tensor, strength: float, keep: float, function, layer, shape, before) -> Decomposed:
    """DoRA as the host merges it: by output the norm is that of the weight alone, by input that of the sum."""
    part = difference(adapter, 1.0, function, layer, shape)
    device = comfy.model_management.get_torch_device()
    weight = keep * before().to(device)
    eps = torch.finfo(torch.float32).eps
    scale = magnitude.float().flatten().to(device)
    if magnitude.shape[0] == shape[0]:
        norms = torch.linalg.vector_norm(weight.flatten(1), dim=1)
        return Decomposed(part, strength, outputs=(scale / (norms + eps)).cpu(), keep=keep)
    weight = weight + Factored(adapter, shape, 1.0, function).weight(device)
    norms = torch.linalg.vector_norm(weight.transpose(0, 1).flatten(1), dim=1)
    return Decomposed(part, strength, inputs=(scale / (norms + eps)).cpu(), keep=keep)
