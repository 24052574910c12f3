"""What may happen to a guidance before it is added: projection, norm limit, momentum, rescale, zero-star, balance.

Everything works on denoised (x0) predictions of shape (batch, ...); reductions are per sample, over all other
dimensions, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shaping:
    """Settings of one guidance's shaping; the defaults change nothing.

    Args:
        parallel, orthogonal: factors on the parts of the guidance along and across its prediction (APG,
            arXiv 2410.02416; parallel 0 avoids oversaturation).
        norm_limit: largest RMS of the guidance in units of the baseline's RMS; 0 sets no limit. Independent of
            resolution, unlike an absolute norm.
        momentum: running sum over the steps, ``delta + momentum * previous`` (APG; negative values dampen).
        rescale: 0..1, pulls the standard deviation of the guided prediction to that of the prediction
            (arXiv 2305.08891, equations 15 and 16).
        zero_star: fit the reference to the prediction first (CFG-Zero*, arXiv 2503.18886).
        zero_init_steps: number of first steps that leave the latent as it is (CFG-Zero*).
        ratio_damping: alpha of ratio-aware guidance (RAAG, arXiv 2508.03442): dampens a scale above 1 where the
            guidance is large against what it is measured from, as in the first of few steps; 0 does not.
        balance: size of what is added in units of the control guidance's, times the scale, at every step; what the
            guidance was as long as before does not count then. 0 keeps the guidance's own size.
    """

    parallel: float = 1.0
    orthogonal: float = 1.0
    norm_limit: float = 0.0
    momentum: float = 0.0
    rescale: float = 0.0
    zero_star: bool = False
    zero_init_steps: int = 0
    ratio_damping: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.parallel, self.orthogonal, self.norm_limit, self.momentum, self.rescale, self.ratio_damping,
                   self.balance)
        if not all(math.isfinite(n) for n in numbers):
            raise ValueError("A shaping needs finite numbers.")
        if min(self.norm_limit, self.zero_init_steps, self.ratio_damping, self.balance) < 0:
            raise ValueError("norm_limit, zero_init_steps, ratio_damping and balance must not be negative; 0 switches "
                             "them off.")
        if self.balance > 0 and (self.norm_limit > 0 or self.ratio_damping > 0):
            raise ValueError("balance sets the size of the guidance, so that norm_limit and ratio_damping would do "
                             "nothing beside it: leave them at 0, or balance.")
        if not -1.0 < self.momentum < 1.0:
            raise ValueError(f"momentum must lie between -1 and 1, not {self.momentum}: "
                             "the sum would grow without end.")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale must lie between 0 and 1, not {self.rescale}.")

    @property
    def is_neutral(self) -> bool:
        """True if the guidance is added as it is."""
        return self == Shaping(zero_init_steps=self.zero_init_steps)

    @property
    def needs_baseline(self) -> bool:
        """True if the baseline prediction is needed to know a size."""
        return self.norm_limit > 0 or self.balance > 0


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample: (B, ...) x (B, ...) -> (B, 1, ...), float32."""
    dims = tuple(range(1, a.ndim))
    return (a.float() * b.float()).sum(dim=dims, keepdim=True)


def rms(a: Tensor) -> Tensor:
    """Root mean square per sample: (B, ...) -> (B, 1, ...), float32."""
    return (dot(a, a) / max(a[0].numel(), 1)).sqrt()


def std(a: Tensor) -> Tensor:
    """Standard deviation per sample: (B, ...) -> (B, 1, ...), float32."""
    return a.float().std(dim=tuple(range(1, a.ndim)), keepdim=True)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))


def project(delta: Tensor, onto: Tensor) -> tuple[Tensor, Tensor]:
    """Split delta into its parts parallel and orthogonal to ``onto``, per sample (APG, arXiv 2410.02416, section 3)."""
    parallel = ratio(dot(delta, onto), dot(onto, onto)) * onto
    return parallel, delta - parallel


def limit_norm(delta: Tensor, limit: Tensor) -> Tensor:
    """Scale delta down where its RMS exceeds ``limit`` (B, 1, ...) (APG, arXiv 2410.02416, section 3)."""
    size = rms(delta)
    return delta * torch.where(size > limit, ratio(limit, size), torch.ones_like(size))


def zero_star_reference(x: Tensor, prediction: Tensor, reference: Tensor) -> Tensor:
    """The reference, its noise fitted to that of the prediction by least squares (CFG-Zero*, arXiv 2503.18886).

    With e = x - D proportional to the velocity (or noise), R' = x - s e_R and s = <e_D, e_R> / |e_R|^2.
    """
    e_prediction, e_reference = x - prediction, x - reference
    return x - ratio(dot(e_prediction, e_reference), dot(e_reference, e_reference)) * e_reference


def rescale_factor(guided: Tensor, prediction: Tensor, amount: float) -> Tensor:
    """Factor (B, 1, ...) on the guided prediction (arXiv 2305.08891, equations 15 and 16)."""
    return amount * ratio(std(prediction), std(guided)) + (1.0 - amount)


def damped_scale(scale: float, x: Tensor, prediction: Tensor, reference: Tensor, alpha: float) -> Tensor | float:
    """The scale w per sample, (B, 1, ...), by how large the guidance is (RAAG, arXiv 2508.03442, section 4).

    ``1 + (w - 1) exp(-alpha rho)`` with rho = |v_D - v_R| / |v_R| of the predicted velocities. These are proportional
    to x - D, so that rho = |D - R| / |x - R|. Scales up to 1 are as they are: there is nothing beyond the prediction.
    """
    if scale <= 1.0:
        return scale
    rho = ratio(rms(prediction - reference), rms(x - reference))
    return 1.0 + (scale - 1.0) * torch.exp(-alpha * rho)


def balanced(added: Tensor, control: Tensor, share: float, mask: Tensor | None = None) -> Tensor:
    """``added`` (B, ...) at ``share`` times the size of ``control`` (B, ...), per sample; 0 where either is 0.

    Args:
        share: what |added| is to be over |control|, the root mean squares.
        mask: where the guidance acts, broadcastable to both; only what lies in it counts.
    """
    seen = (added, control) if mask is None else (added * mask, control * mask)
    return added * (share * ratio(rms(seen[1]), rms(seen[0])))


class Momentum:
    """Running sums of one run, one for each guidance, keyed on the noise level instead of the call count.

    Samplers may ask for a noise level twice (Heun) or go back to a higher one (restarts): the sum at a level always
    continues from the nearest level above it, so asking again changes nothing.
    """

    DEPTH = 8  # levels kept for each guidance: enough for the inner evaluations of any sampler

    def __init__(self) -> None:
        self._sums: dict[int, list[tuple[float, Tensor]]] = {}

    def update(self, key: int, sigma: float, delta: Tensor, momentum: float) -> Tensor:
        """delta + momentum * (the sum at the level above), and remember it for this level."""
        above = [(level, total) for level, total in self._sums.get(key, ()) if level > sigma]
        total = delta + momentum * above[-1][1] if above else delta
        self._sums[key] = [*above, (sigma, total)][-self.DEPTH:]
        return total


def shape(delta: Tensor, prediction: Tensor, baseline: Tensor, shaping: Shaping) -> Tensor:
    """Norm limit, then projection, of a guidance (B, ...); both as in APG (arXiv 2410.02416, algorithm 1)."""
    if shaping.norm_limit > 0:
        delta = limit_norm(delta, shaping.norm_limit * rms(baseline))
    if shaping.parallel != 1.0 or shaping.orthogonal != 1.0:
        parallel, orthogonal = project(delta, prediction)
        delta = shaping.parallel * parallel + shaping.orthogonal * orthogonal
    return delta
