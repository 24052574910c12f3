"""Where a guidance acts: masks shaped like the latent, and the regions in which a conditioning predicts at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.sampler_helpers import prepare_mask
from comfy.samplers import get_area_and_mult
from torch import Tensor

from ..lanes.conditionings import Conds


def spatial_mask(mask: Tensor, shape: torch.Size, streams: Sequence[torch.Size]) -> Tensor:
    """A mask (B, H, W) shaped like the latent.

    Args:
        streams: shapes of the latents that the host has packed into one, as picture and sound; the mask is one of the
            first, and the others are whole, as with the host's own masks.
    """
    if len(streams) <= 1:
        return prepare_mask(mask, shape, mask.device)
    parts = [prepare_mask(mask, streams[0], mask.device), *(torch.ones(s, device=mask.device) for s in streams[1:])]
    return torch.cat([part.flatten(1).unsqueeze(1) for part in parts], dim=-1)


def coverage(conds: Conds, x: Tensor, timestep: Tensor) -> Tensor | None:
    """Where a conditioning predicts, 0 to 1, shaped like x; None means everywhere.

    Outside its areas and masks the host predicts zeros, which must not be taken for a prediction. Strengths only weigh
    the parts of a conditioning against each other.
    """
    if any("default" in c for c in conds) or not any({"area", "mask"} & c.keys() for c in conds):
        return None
    total = torch.zeros_like(x)
    unweighed = ({**c, "strength": 1.0, "mask_strength": 1.0} for c in conds)
    for part in filter(None, (get_area_and_mult(c, x, timestep) for c in unweighed)):
        region = total
        dims = len(part.area) // 2 if part.area is not None else 0
        for i in range(dims):
            region = region.narrow(i + 2, part.area[i + dims], part.area[i])
        region += part.mult
    return total.clamp_(0.0, 1.0)
