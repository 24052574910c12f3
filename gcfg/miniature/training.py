"""Training in miniature: the base, the captioned fine-tune, the null-text concept model, and the classifier.

Every function is deterministic for its seed. ``progress`` is called with (steps done, steps in all, loss).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nulltext.attention import replace_cross_attention
from ..nulltext.calibrate import TIMESTEPS, features, measure
from .metrics import Classifier
from .model import Denoiser, caption_of
from .pictures import COLOURS, SIZE, base_attributes, concept_attributes, draw
from .sampling import ANGLE

ProgressBar = Callable[[int, int, float], None]
CONCEPT_PICTURES = 500
"""Pictures of the concept that the concept models are trained on."""
STEPS = {"base": 3000, "tuned": 800, "concept": 800, "classifier": 500}


def silent(done: int, total: int, loss: float) -> None:
    """A progress bar that shows nothing."""


def v_loss(model: Denoiser, pictures: Tensor, caption: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of v = (n - sigma x0) / sqrt(1 + sigma^2) (arXiv 2202.00512), angle atan(sigma) uniform."""
    sigma = torch.tan(torch.rand(len(pictures), generator=generator) * (ANGLE - 0.02) + 0.02)
    s = sigma.view(-1, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator)
    scale = (1.0 + s.square()).rsqrt()
    target = (noise - s * pictures) * scale
    return F.mse_loss(model.unet((pictures + s * noise) * scale, sigma, model.text(caption)), target)


def drop_words(caption: Tensor, generator: torch.Generator, each: float = 0.3, whole: float = 0.1) -> Tensor:
    """Leave out words (N, 3) one by one, and now and then the whole caption, as training of the null text needs."""
    keep = torch.rand(caption.shape, generator=generator) >= each
    keep &= torch.rand((len(caption), 1), generator=generator) >= whole
    return caption * keep


def descend(parameters: Iterable[nn.Parameter], loss_of_batch: Callable[[], Tensor], steps: int, rate: float,
            progress: ProgressBar) -> None:
    """AdamW (weight decay 1e-2, gradient clip 1) with a short warm-up and a cosine fall of the rate to zero."""
    parameters = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
    for step in range(steps):
        along = min(1.0, (step + 1) / 50) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * along
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress(step + 1, steps, float(loss.detach()))


def train_base(seed: int, progress: ProgressBar = silent, steps: int = STEPS["base"], batch: int = 96) -> Denoiser:
    """The base: all shapes, colours and places, with captions; pictures are drawn as they are needed."""
    torch.manual_seed(seed)
    model, generator = Denoiser(), torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        attributes = base_attributes(batch, generator)
        caption = drop_words(caption_of(attributes), generator)
        return v_loss(model, draw(attributes, generator), caption, generator)

    descend(model.parameters(), loss, steps, 2e-3, progress)
    return model.train(False).requires_grad_(False)


def concept_set(seed: int, count: int = CONCEPT_PICTURES) -> tuple[Tensor, Tensor]:
    """The concept's training pictures (count, 3, 16, 16), and their attributes (count, 3), which only captions use."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    attributes = concept_attributes(count, generator)
    return draw(attributes, generator, concept=True), attributes


def fine_tune(base: Denoiser, seed: int, captioned: bool, progress: ProgressBar = silent, steps: int = STEPS["tuned"],
              batch: int = 64) -> Denoiser:
    """A copy of the base trained on the concept pictures, the text encoder frozen.

    Args:
        captioned: True trains on captions (the usual fine-tune), False turns the copy into a null-text model first
            and trains on pictures alone (arXiv 2312.08195).
    """
    pictures, attributes = concept_set(seed)
    model, generator = copy.deepcopy(base).train(), torch.Generator().manual_seed(20_000 + seed)
    if not captioned:
        replace_cross_attention(model.unet, null_text_features(base, seed))
    model.unet.requires_grad_(True)

    def loss() -> Tensor:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        caption = drop_words(caption_of(attributes[rows]), generator) * captioned
        return v_loss(model, pictures[rows], caption, generator)

    descend(model.unet.parameters(), loss, steps, 5e-4, progress)
    return model.train(False).requires_grad_(False)


def null_text_features(base: Denoiser, seed: int) -> dict[str, Tensor]:
    """Calibrate the null-text features of the base on noise at the levels of ``gcfg.nulltext.calibrate``."""
    noise = torch.randn((8, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), measure(base.unet) as means:
        for timestep in TIMESTEPS:
            sigma = math.tan(timestep / 1000 * ANGLE)
            base(noise * (1.0 + sigma**2) ** 0.5, torch.full((8,), sigma), torch.zeros(8, 3, dtype=torch.long))
    return features(means)


def train_classifier(seed: int = 0, progress: ProgressBar = silent, steps: int = STEPS["classifier"],
                     batch: int = 128) -> Classifier:
    """The classifier of all attributes and of the look, on both domains in *all* colours, with a little noise."""
    torch.manual_seed(seed)
    model, generator = Classifier(), torch.Generator().manual_seed(30_000 + seed)

    def loss() -> Tensor:
        flat, rings = base_attributes(batch, generator), concept_attributes(batch, generator)
        rings[:, 1] = torch.randint(len(COLOURS), (batch,), generator=generator)
        pictures = torch.cat([draw(flat, generator), draw(rings, generator, concept=True)])
        noise = torch.randn(pictures.shape, generator=generator) * torch.rand((2 * batch, 1, 1, 1), generator=generator)
        look = torch.arange(2).repeat_interleave(batch).unsqueeze(1)
        targets = torch.cat([torch.cat([flat, rings]), look], dim=1)
        answers = model(pictures + 0.3 * noise)
        return sum(F.cross_entropy(a, t) for a, t in zip(answers, targets.unbind(1), strict=True))

    descend(model.parameters(), loss, steps, 2e-3, progress)
    return model.train(False).requires_grad_(False)
