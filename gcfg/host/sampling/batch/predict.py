"""Denoised predictions through the host, as many in one forward pass as its memory allows."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import comfy.samplers
from comfy.samplers import calc_cond_batch
from torch import Tensor

from ....rows.batch import Regrouped
from ....rows.network import RowwiseNetwork
from ..lanes.controls import with_roles
from .mixing import Mixed, watched
from .row import Row


def predict(model, rows: Sequence[Row], x: Tensor, timestep: Tensor, options: dict,
            networks: Mapping[object, RowwiseNetwork], batch: Callable = calc_cond_batch,
            in_pairs: bool = False) -> list[Tensor]:
    """Denoised predictions (B, ...) of one model, one for each row, in as few batches as are right.

    Args:
        model: the host's inner model.
        networks: by inner model, the network that applies the adapters; the host may spread a batch over devices,
            each with an inner model of its own.
        batch: the host's function, or the executor of a wrapper around it.
        in_pairs: the rows make one prediction together.

    Where memory does not suffice for all, the sampler's own rows run as they would alone, and last: patches of other
    packs keep what they saw last. Networks that do not keep the rows of a batch apart get one adapter at a time, and
    attention patches that do not, one prediction at a time.
    """
    own, added = ([i for i, row in enumerate(rows) if row.added is kind] for kind in (False, True))
    parts = [added, own] if own and added and not fits(model, rows, x, options) else [range(len(rows))]
    if not in_pairs and any(network.mixes for network in networks.values()):
        parts = [*([i] for i in added), own] if own else [[i] for i in added]
    if any(network.regroups for network in networks.values()):
        parts = [[i for i in part if rows[i].adapter == adapter] for part in parts
                 for adapter in sorted({rows[i].adapter for i in part}, key=lambda name: (name is None, name))]
    found: dict[int, Tensor] = {}
    try:
        for part in parts:
            values = _predict_together(model, [rows[i] for i in part], x, timestep, options, networks, batch, in_pairs)
            found |= zip(part, values, strict=True)
    except Regrouped:  # the networks have noted it
        return predict(model, rows, x, timestep, options, networks, batch, in_pairs)
    except Mixed as error:
        logging.info("GCFG: each prediction runs in a batch of its own: the attention patch %s mixes them.", error)
        for network in networks.values():
            network.mixes = True
        return predict(model, rows, x, timestep, options, networks, batch, in_pairs)
    return [found[i] for i in range(len(rows))]


def _predict_together(model, rows: Sequence[Row], x: Tensor, timestep: Tensor, options: dict,
                      networks: Mapping[object, RowwiseNetwork], batch: Callable, in_pairs: bool) -> list[Tensor]:
    """Predictions by one call of the host.

    Patches of other packs look at the roles of a batch: some take its first guided and its first unguided row, others
    expect all unguided rows before all guided ones. A batch therefore holds the unguided rows first, and of each role
    the sampler's own before those of the recipe.
    """
    in_batch = sorted(range(len(rows)), key=lambda i: (-rows[i].role, rows[i].added))
    asked = in_batch[::-1]  # the host puts the last conditioning into the first row
    inner = options.get("model_function_wrapper")

    def call(apply_model: Callable, args: dict) -> Tensor:
        """Runs one batch; the host says of each part which conditioning it belongs to."""
        parts = [rows[asked[position]] for position in args["cond_or_uncond"]]
        repeats = args["input"].shape[0] // len(parts)
        args["cond_or_uncond"] = [row.role for row in parts]
        args["c"]["transformer_options"]["cond_or_uncond"] = [row.role for row in parts]
        if not in_pairs and "torch_compile_kwargs" not in options:  # compiled, each new function would compile it again
            belong = [id(row) if row.added else None for row in parts]
            args["c"]["transformer_options"] = watched(args["c"]["transformer_options"], belong)
        network = networks[getattr(apply_model, "__self__", model)]
        with network.applied([row.adapter for row in parts for _ in range(repeats)]):
            if inner is not None:
                return inner(apply_model, args)
            return apply_model(args["input"], args["timestep"], **args["c"])

    conds = with_roles([rows[i].conds for i in asked], [rows[i].role for i in asked])
    values = batch(model, conds, x, timestep, {**options, "model_function_wrapper": call})
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
