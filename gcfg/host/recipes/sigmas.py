"""The noise levels of the paper's code."""

from __future__ import annotations

import torch
from torch import Tensor


def paper_sigmas(patcher, steps: int, denoise: float = 1.0) -> Tensor:
    """Evenly spaced whole training steps, and 0: (steps + 1,), falling.

    The official code of arXiv 2312.08195 samples by the DPM-Solver++ of diffusers with its spacing "linspace".

    Args:
        patcher: the MODEL whose noise schedule is meant.
        denoise: the part of the schedule to run, as in the host's schedulers.

    Raises:
        ValueError: the model has no training steps with noise levels.
    """
    sampling = patcher.get_model_object("model_sampling")
    levels = getattr(sampling, "sigmas", None)
    if levels is None or not hasattr(sampling, "linear_start"):  # the mark of the host's discrete diffusion schedules
        raise ValueError(f"{type(patcher.model).__name__} has no training steps with noise levels, as Stable Diffusion "
                         "1, 2 and XL have; use BasicScheduler.")
    total = max(steps, int(steps / denoise))
    timesteps = torch.linspace(0, len(levels) - 1, total + 1, dtype=torch.float64).round().long().flip(0)[:-1]
    return torch.cat([levels[timesteps.to(levels.device)].float().cpu(), torch.zeros(1)])[-(steps + 1):]
