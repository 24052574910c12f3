"""One prediction as a row of a batch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

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
