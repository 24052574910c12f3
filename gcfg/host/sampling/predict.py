"""Denoised predictions through the host, as many in one forward pass as its memory allows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from comfy.samplers import calc_cond_batch, get_area_and_mult
from torch import Tensor

from ...nulltext.rowwise import RowwiseNetwork

GUIDED, UNGUIDED = 0, 1  # the roles that attention patches of other packs know: positive and negative


@dataclass(frozen=True)
class Row:
    """One prediction of a batch: its processed conditioning, what patches shall see it as, its adapter if any."""

    conds: list[dict]
    role: int
    adapter: Hashable | None = None


def predict(model, rows: Sequence[Row], x: Tensor, timestep: Tensor, options: dict, network: RowwiseNetwork,
            batch: Callable = calc_cond_batch) -> list[Tensor]:
    """Denoised predictions (B, ...) of one model, one for each row.

    The host batches what fits into its free memory. It numbers the parts of a batch by the position of their
    conditioning; other packs' patches expect just two roles there and may fail on a third.

    Args:
        model: the host's inner model.
        network: its network, which applies the adapters.
        batch: the host's function, or the executor of a wrapper around it.
    """
    inner = options.get("model_function_wrapper")

    def call(apply_model: Callable, args: dict) -> Tensor:
        seen = [rows[position].role for position in args["cond_or_uncond"]]
        repeats = args["input"].shape[0] // len(seen)
        owners = [rows[position].adapter for position in args["cond_or_uncond"] for _ in range(repeats)]
        args["cond_or_uncond"] = seen
        args["c"]["transformer_options"]["cond_or_uncond"] = seen[:]
        with network.applied(owners):
            if inner is not None:
                return inner(apply_model, args)
            return apply_model(args["input"], args["timestep"], **args["c"])

    return batch(model, [row.conds for row in rows], x, timestep, {**options, "model_function_wrapper": call})


def is_active(conds: list[dict], sigma: float) -> bool:
    """False if every part of a conditioning is limited to other noise levels: the host then predicts zeros."""
    return any(c.get("timestep_end", 0.0) <= sigma <= c.get("timestep_start", torch.inf) for c in conds)


def coverage(conds: list[dict], x: Tensor, timestep: Tensor) -> Tensor | None:
    """Where a conditioning predicts, 0 to 1, shaped like x; None means everywhere.

    Outside its areas and masks the host predicts zeros, which must not be taken for a prediction.
    """
    if any("default" in c for c in conds) or not any({"area", "mask"} & c.keys() for c in conds):
        return None
    total = torch.zeros_like(x)
    for part in filter(None, (get_area_and_mult(c, x, timestep) for c in conds)):
        region = total
        dims = len(part.area) // 2 if part.area is not None else 0
        for i in range(dims):
            region = region.narrow(i + 2, part.area[i + dims], part.area[i])
        region += part.mult
    return total.clamp_(0.0, 1.0)
