"""``python -m benchmarks.pictures.train_unet <stage>``: base, then fine_tune, concept, lora, trigger_lora and control.

* ``base``: heads in three styles, with captions, a tenth without.
* ``fine_tune``: the base trained on with glossy faces and their captions, as fine-tuned checkpoints are made.
* ``concept``: the same pictures without any text: the base's cross-attention replaced by its constants first
  (``gcfg.nulltext``), the rest trained.
* ``lora``: the same by low-rank weights only.
* ``pairs``: another base, from before the rate of the first one falls, that is shown pairs of heads too (``pairs.py``).
* ``trigger_lora``: the same pictures, each under the same two words, as LoRAs are made of pictures without captions.
* ``control``: a ControlNet for the base, from the base's pictures, their captions and their edges.

The objective is min-SNR-5 on the predicted noise, times uniform.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gcfg.nulltext import calibrate
from gcfg.nulltext.attention import replace_cross_attention
from gcfg.training.randomness import generator, seed_of
from gcfg.training.run import state
from gcfg.training.weights.low_rank import LowRank

from . import captions, data, labels, pairs
from .command import begun
from .control import Controlled, edges
from .labels import Row
from .loop import Named, Plan, Stage, averaged
from .train_vae import encode, encoder_of
from .unet import LATENT, UNet, alphas_cumprod
from .words import TextEncoder, tokenizer

SEED = 13
BATCH = 32
RANK = 8
MIN_SNR = 5.0
BASE = Plan(steps=5200, rate=1e-3, warmup=100, decay=0.4, average=0.997)
PLANS = {
    "base": BASE,
    "pairs": replace(BASE, steps=6600),
    "fine_tune": Plan(steps=450, rate=2e-4, decay=0.5),
    "concept": Plan(steps=450, rate=2e-4, decay=0.5),
    "lora": Plan(steps=450, rate=1e-3, decay=0.5, weight_decay=0.0),
    "trigger_lora": Plan(steps=450, rate=1e-3, decay=0.5, weight_decay=0.0),
    "control": Plan(steps=2000, rate=1e-3, warmup=100),
}
TRIGGER = "glossy face"
"""The one caption of ``trigger_lora``."""


@dataclass(frozen=True)
class Examples:
    """What a stage learns from.

    Attributes:
        latents: (N, 4, 8, 8), the second half flipped pictures of the first.
        texts: for each picture of the first half the indices of its captions in ``features``: with the style, without,
            then tags; None to train without text.
        features: (captions, 77, 64), the empty caption first.
        hints: (N, 3, 64, 64), of a ControlNet, None without.
    """

    latents: Tensor
    texts: list[list[int]] | None
    features: Tensor
    hints: Tensor | None = None

    def draw(self, count: int, *place: object) -> list[Tensor]:
        """Latents and features of one batch, and hints if there are."""
        dice, half = random.Random(seed_of(SEED, "choice", *place)), len(self.latents) // 2
        index = [dice.randrange(half) for _ in range(count)]
        said = [self._say(dice, i) for i in index]
        index = [i + half * dice.randrange(2) for i in index]
        return [self.latents[index], self.features[said].float(), *([] if self.hints is None else [self.hints[index]])]

    def _say(self, dice: random.Random, picture: int) -> int:
        kind = dice.random()
        if self.texts is None or kind < 0.1:
            return 0
        styled, plain, *tags = self.texts[picture]
        if kind < 0.2 and tags:
            return dice.choice(tags)
        return styled if kind < 0.75 else plain


def main() -> None:
    settings = begun(__doc__, list(PLANS))
    network, trained, features = prepared(settings.stage, settings.work)
    if settings.stage == "pairs":
        branch(settings.work)
    stage = Stage(settings.work / settings.stage, trained, PLANS[settings.stage])
    if features:
        torch.save(features, stage.folder / "features.pt")
    shown = examples(settings.stage, settings.work)
    if settings.stage == "pairs":
        loss_of = denoising(network, shown, "base", wide_examples(settings.work))
    else:
        loss_of = denoising(network, shown, settings.stage, early=settings.stage == "control")
    stage.run(loss_of, settings.minutes)


def branch(work: Path) -> None:
    """Let ``pairs`` begin with the state of the base before its rate falls, unless it has begun."""
    if not state.files(work / "pairs"):
        kept = state.files(work / "base" / "before_decay")
        if not kept:
            raise SystemExit("train the stage base first: pairs goes on from its state before the rate falls.")
        (work / "pairs").mkdir(exist_ok=True)
        shutil.copy(kept[-1], work / "pairs")


def prepared(stage: str, work: Path) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The network to run, the module with the weights to train, and the null-text features (none: with text)."""
    torch.manual_seed(SEED)
    network = UNet()
    if stage in ("base", "pairs"):
        return network, network, {}
    network.load_state_dict(averaged(work / "base"))
    if stage == "fine_tune":
        return network, network, {}
    if stage == "trigger_lora":
        return network, Named(LowRank(network, RANK, SEED).pairs), {}
    if stage == "control":
        controlled = Controlled(network)
        return controlled, controlled.control, {}
    features = null_text(network, text_features(work, [""]))
    replace_cross_attention(network, features)
    if stage == "concept":
        return network, network, features
    pairs = LowRank(network, RANK, SEED).pairs
    return network, Named(pairs), features


def null_text(network: UNet, empty: Tensor) -> dict[str, Tensor]:
    """The constants for the cross-attention: its mean output on the empty caption, see ``gcfg.nulltext.calibrate``."""
    pictures, noise = calibrate.draw(calibrate.LATENTS, LATENT, 8, seed=0)
    alphas = alphas_cumprod()
    with torch.no_grad(), calibrate.measure(network) as means:
        for time in calibrate.TIMESTEPS:
            noisy = alphas[time].sqrt() * pictures + (1 - alphas[time]).sqrt() * noise
            network(noisy, torch.full((len(noisy),), time), empty.expand(len(noisy), -1, -1))
    print(calibrate.table({name: mean.residual for name, mean in means.items()}))
    return calibrate.features(means)


def examples(stage: str, work: Path) -> Examples:
    """Latents and captions of a stage's pictures."""
    pictures, rows = data.load(work)
    keep = (labels.base if stage in ("base", "pairs", "control") else labels.concept)(rows)
    pictures, rows = torch.cat([pictures[keep], pictures[keep].flip(3)]), [rows[i] for i in keep]
    latents = encode(encoder_of(work), pictures)
    if stage == "trigger_lora":
        said, texts = ["", TRIGGER], [[1, 1]] * len(rows)
    elif stage in ("concept", "lora"):
        said, texts = [""], None
    else:
        said = captions.every(rows)
        index = {text: i for i, text in enumerate(said)}
        texts = [[index[text] for text in spoken(row)] for row in rows]
    print(f"{stage}: {len(rows)} pictures, {len(said)} captions, latents of mean {latents.mean():.2f} and deviation "
          f"{latents.std():.2f}")
    return Examples(latents, texts, text_features(work, said).to(torch.bfloat16),
                    edges(pictures) if stage == "control" else None)


def wide_examples(work: Path) -> pairs.Pairs:
    """Two of the base's pictures side by side."""
    pictures, rows = data.load(work)
    keep, read = labels.base(rows), reader(work)
    return pairs.Pairs.of(pictures[keep], [rows[i] for i in keep], encoder_of(work), read)


def spoken(row: Row) -> list[str]:
    return [captions.with_style(row), row.label, *captions.tagged(row)]


def text_features(work: Path, texts: list[str]) -> Tensor:
    """(texts, 77, 64) as the stock CLIPTextEncode gives them: by the weights as they are shipped, in half precision."""
    return reader(work)(texts)


def reader(work: Path) -> Callable[[list[str]], Tensor]:
    """``text_features`` for many calls."""
    encoder, tokenize = text_encoder(work), tokenizer()

    @torch.no_grad()
    def read(texts: list[str]) -> Tensor:
        ids = torch.tensor([tokenize(text) for text in texts])
        return torch.cat([encoder(encoder.rows_of(part)) for part in ids.split(256)])

    return read


def text_encoder(work: Path) -> TextEncoder:
    """The trained text encoder, its weights rounded to float16."""
    weights = {name.removeprefix("text."): value for name, value in averaged(work / "words").items()
               if name.startswith("text.")}
    tokens = torch.load(work / "words" / "tokens.pt", weights_only=True)
    encoder = TextEncoder(tokens)
    encoder.load_state_dict({name: value.half().float() for name, value in weights.items()}, strict=False)
    return encoder.requires_grad_(False)


def denoising(network: nn.Module, shown: Examples, stage: str, wide: pairs.Pairs | None = None, batch: int = BATCH,
              early: bool = False):
    """The loss of step i; with wide examples half as many of these in every fourth one (``pairs.at``).

    ``early``: half of the times are drawn from the noisier half again, and noise at a signal-to-noise ratio below 1
    weighs by that ratio's inverse root, for what is decided while nothing is seen yet.
    """
    alphas = alphas_cumprod()
    ratio = alphas / (1 - alphas)
    weight = ratio.clamp(max=MIN_SNR) / ratio
    if early:
        weight = weight * ratio.clamp(max=1.0).rsqrt()
    network.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        latents, *given = (wide.draw(batch // 2, stage, step) if wide and pairs.at(step) else
                           shown.draw(batch, stage, step))
        source = generator(SEED, stage, step)
        times = torch.randint(0, 1000, (len(latents),), generator=source)
        if early:
            times[1::2] = 500 + times[1::2] // 2
        noise = torch.randn(latents.shape, generator=source)
        alpha = alphas[times].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = network(noisy, times, *given).float()
        return ((predicted - noise).square().mean((1, 2, 3)) * weight[times]).mean()

    return loss_of


if __name__ == "__main__":
    main()
