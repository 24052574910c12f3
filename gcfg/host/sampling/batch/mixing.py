"""Attention patches of other packs that mix the rows of a batch, told by what they do.

A replacement of an attention computes each prediction of a batch for itself, or it does not: one that takes a norm over
the whole batch makes the sampler's own prediction depend on what a recipe adds to it. No flag says so. One call of each
kind of replacement in a batch is therefore made twice: as it is, and as it would be without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

TOLERANCE = 5e-3
"""Root mean square of what the others change, relative to the result: above what another batch size rounds to in
bfloat16 (2e-3), below what anybody would see."""


class Mixed(Exception):
    """An attention patch makes predictions of one batch depend on each other; run them by themselves."""


def watched(options: dict, parts: Sequence[Hashable]) -> dict:
    """Transformer options whose attention replacements raise ``Mixed`` if they mix some parts of a batch.

    Args:
        options: of one batch; left as they are.
        parts: for each of its equal parts, which of them belong together.
    """
    replacements = options.get("patches_replace", {})
    if len(set(parts)) < 2 or not any(replacements.get(kind) for kind in ("attn1", "attn2")):
        return options
    first, seen = [i for i, name in enumerate(parts) if name == parts[0]], set()

    def watch(function: Callable) -> Callable:
        kind = getattr(getattr(function, "func", function), "__code__", type(function))

        def attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict, *args, **kwargs) -> Tensor:
            if kind in seen or q.shape[0] % len(parts):
                return function(q, k, v, extra_options, *args, **kwargs)
            seen.add(kind)
            size = q.shape[0] // len(parts)
            rows = [i * size + n for i in first for n in range(size)]

            def of(value):
                whole = isinstance(value, Tensor) and value.ndim and value.shape[0] == q.shape[0]
                return value[rows] if whole else value
            fewer = {key: [extra_options[key][i] for i in first] for key in ("cond_or_uncond", "uuids")
                     if key in extra_options}
            alone = function(of(q), of(k), of(v), {**extra_options, **fewer}, *map(of, args),
                             **{key: of(value) for key, value in kwargs.items()}).float()
            result = function(q, k, v, extra_options, *args, **kwargs)
            if torch.linalg.vector_norm(result[rows].float() - alone) > TOLERANCE * torch.linalg.vector_norm(alone):
                raise Mixed(getattr(function, "__qualname__", type(function).__name__))
            return result
        return attention

    changed = {kind: {place: watch(fn) for place, fn in by_place.items()} if kind in ("attn1", "attn2") else by_place
               for kind, by_place in replacements.items()}
    return {**options, "patches_replace": changed}
