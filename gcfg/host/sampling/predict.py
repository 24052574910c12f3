"""Denoised predictions through the host, as many in one forward pass as its memory allows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import comfy.samplers
from comfy.samplers import calc_cond_batch
from torch import Tensor

from ...nulltext.rowwise import RowwiseNetwork

GUIDED, UNGUIDED = 0, 1  # the roles that attention patches of other packs know: positive and negative


@dataclass(frozen=True)
class Row:
    """One prediction of a batch.

    Attributes:
        conds: its processed conditioning.
        role: what patches shall see it as.
        adapter: what it takes beside the weights, if anything.
        added: by a recipe, to what the sampler asked for itself.
    """

    conds: list[dict]
    role: int
    adapter: Hashable | None = None
    added: bool = True


def predict(model, rows: Sequence[Row], x: Tensor, timestep: Tensor, options: dict, network: RowwiseNetwork,
            batch: Callable = calc_cond_batch) -> list[Tensor]:
    """Denoised predictions (B, ...) of one model, one for each row.

    Patches of other packs look at the roles of a batch: some take its first guided and its first unguided row, others
    expect all unguided rows before all guided ones. A batch therefore holds the unguided rows first, and of each role
    the sampler's own before those of the recipe. Where memory does not suffice for all, the sampler's own run as they
    would alone, and last: patches keep what they saw last.

    Args:
        model: the host's inner model.
        network: its network, which applies the adapters.
        batch: the host's function, or the executor of a wrapper around it.
    """
    own = [i for i, row in enumerate(rows) if not row.added]
    if 0 < len(own) < len(rows) and not fits(model, rows, x, options):
        found: dict[int, Tensor] = {}
        for part in ([i for i, row in enumerate(rows) if row.added], own):
            found |= zip(part, predict(model, [rows[i] for i in part], x, timestep, options, network, batch),
                         strict=True)
        return [found[i] for i in range(len(rows))]

    in_batch = sorted(range(len(rows)), key=lambda i: (-rows[i].role, rows[i].added))
    asked = in_batch[::-1]  # the host puts the last conditioning into the first row
    inner = options.get("model_function_wrapper")

    def call(apply_model: Callable, args: dict) -> Tensor:
        """Runs one batch; the host says of each part which conditioning it belongs to."""
        parts = [rows[asked[position]] for position in args["cond_or_uncond"]]
        repeats = args["input"].shape[0] // len(parts)
        args["cond_or_uncond"] = [row.role for row in parts]
        args["c"]["transformer_options"]["cond_or_uncond"] = [row.role for row in parts]
        with network.applied([row.adapter for row in parts for _ in range(repeats)]):
            if inner is not None:
                return inner(apply_model, args)
            return apply_model(args["input"], args["timestep"], **args["c"])

    values = batch(model, [rows[i].conds for i in asked], x, timestep, {**options, "model_function_wrapper": call})
    found = dict(zip(asked, values, strict=True))
    return [found[i] for i in range(len(rows))]


def fits(model, rows: Sequence[Row], x: Tensor, options: dict) -> bool:
    """Whether the host would run all rows in one batch, by its own estimate."""
    if "multigpu_clones" in options:
        return True
    shapes = defaultdict(list)
    for cond in (c for row in rows for c in row.conds):
        for name, value in cond["model_conds"].items():
            shapes[name].append(value.size())
    patcher = model.current_patcher
    management = patcher if hasattr(patcher, "get_free_memory") else comfy.samplers.model_management  # older hosts
    needed = model.memory_required([len(rows) * x.shape[0], *x.shape[1:]], cond_shapes=shapes)
    return needed * 1.5 < management.get_free_memory(x.device)
