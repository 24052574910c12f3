"""``python -m benchmarks.pictures.train_words``: the text encoder, by contrast with pictures as CLIP was, then frozen.

InfoNCE in both directions between a caption and its picture. A batch holds two styles of each label, so a style word is
told apart too; a caption without one is not told that the other style of its label is wrong. Half of the captions are
read at a padding token instead of the end-of-text: SD1.5 attends to the padding as well, so it should say the same.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcfg.training.randomness import generator, seed_of

from . import captions, data
from .command import begun
from .labels import HELD_OUT_LABELS, Row
from .loop import Plan, Stage, averaged
from .words import LENGTH, WIDTH, TextEncoder, end_of, known, tokenizer

SEED = 12
PLAN = Plan(steps=1400, rate=2e-3, decay=0.5)
LABELS = 48
"""Labels of a batch, two pictures each."""


class Contrast(nn.Module):
    """The text encoder and, for training only, a small image encoder on pictures of half size."""

    def __init__(self, tokens: Tensor):
        super().__init__()
        self.text = TextEncoder(tokens)
        self.image = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.SiLU(), nn.GroupNorm(4, 32), nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(),
            nn.GroupNorm(8, 64), nn.Conv2d(64, 128, 4, 2, 1), nn.SiLU(), nn.GroupNorm(8, 128),
            nn.Conv2d(128, 32, 1), nn.Flatten(), nn.Linear(32 * 16, WIDTH))
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.3))

    def forward(self, rows: Tensor, at: Tensor, pictures: Tensor) -> Tensor:
        """Similarities (captions, pictures) of rows (B, 77) read at the places ``at`` (B,)."""
        text = self.project(self.text(rows)[torch.arange(len(rows)), at])
        image = self.image(F.avg_pool2d(pictures, 2) * 2 - 1)
        return F.normalize(text, dim=1) @ F.normalize(image, dim=1).T * self.temperature.clamp(max=4.0).exp()


def main() -> None:
    settings = begun(__doc__)
    pictures, rows = data.load(settings.work)
    keep = [i for i, row in enumerate(rows) if not row.held_out]
    pictures, rows = pictures[keep], [rows[i] for i in keep]
    ids = Captions(rows, tokenizer())
    torch.manual_seed(SEED)
    model = Contrast(ids.tokens)
    stage = Stage(settings.work / "words", model, PLAN)
    torch.save(ids.tokens, settings.work / "words" / "tokens.pt")
    stage.run(contrast(model, pictures, rows, ids), settings.minutes)
    report(model, settings.work, pictures, rows, ids)


class Captions:
    """The CLIP ids of every caption of these rows."""

    def __init__(self, rows: list[Row], tokenize):
        self.texts = captions.every(rows)
        self.ids = torch.tensor([tokenize(text) for text in self.texts])
        self.tokens = known(self.ids.tolist())
        self.index = {text: i for i, text in enumerate(self.texts)}

    def __getitem__(self, texts: list[str]) -> Tensor:
        return self.ids[[self.index[text] for text in texts]]


def contrast(model: Contrast, pictures: Tensor, rows: list[Row], ids: Captions):
    """The loss of step i."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.label, []).append(i)
    labels = [label for label, group in groups.items() if len(group) > 1]

    def loss_of(step: int) -> Tensor:
        dice, source = random.Random(seed_of(SEED, "words", step)), generator(SEED, "words", step)
        index = [i for label in dice.sample(labels, LABELS) for i in dice.sample(groups[label], 2)]
        texts = [caption(rows[i], dice) for i in index]
        batch = ids[texts]
        at = end_of(batch)
        place = at + (torch.rand(len(at), generator=source) * (LENGTH - at)).long()
        place = torch.where(torch.rand(len(at), generator=source) < 0.5, at, place)
        token_rows = model.text.rows_of(batch)
        forget = (torch.rand(token_rows.shape, generator=source) < 0.06) & (torch.arange(LENGTH) < at[:, None])
        shown = torch.stack([pictures[i] for i in index])
        shown = torch.roll(shown, torch.randint(-4, 5, (2,), generator=source).tolist(), (2, 3))
        logits = model(token_rows.masked_fill(forget, 0), place, shown)
        return info_nce(logits, torch.tensor([rows[i].style in text for i, text in zip(index, texts, strict=True)]))

    return loss_of


def caption(row: Row, dice: random.Random) -> str:
    kind = dice.random()
    if kind < 0.2 and row.tags:
        return dice.choice(captions.tagged(row))
    return captions.with_style(row) if kind < 0.75 else row.label


def info_nce(logits: Tensor, styled: Tensor) -> Tensor:
    """Both directions; pictures 2i and 2i+1 share a label: no negatives where the caption names no style.

    Args:
        logits: (B, B), caption i belongs to picture i.
        styled: (B,) bool, whether caption i names its style.
    """
    count = len(logits)
    twin = torch.arange(count) ^ 1
    ignore = torch.zeros(count, count, dtype=torch.bool)
    ignore[torch.arange(count), twin] = ~styled
    logits, target = logits.masked_fill(ignore, float("-inf")), torch.arange(count)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def report(model: Contrast, work: Path, pictures: Tensor, rows: list[Row], ids: Captions) -> None:
    """How often a caption finds its own picture among all, and one of its label."""
    weights = averaged(work / "words")
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        batch = ids[[captions.with_style(row) for row in rows]]
        found = model(model.text.rows_of(batch), end_of(batch), pictures).argmax(1).tolist()
    own = sum(i == j for i, j in enumerate(found)) / len(rows)
    label = sum(rows[i].label == rows[j].label for i, j in enumerate(found)) / len(rows)
    print(f"caption finds its picture among {len(rows)}: {own:.3f}, one of its label: {label:.3f}; "
          f"{len(ids.tokens)} tokens, {len(ids.texts)} captions; not shown: {', '.join(HELD_OUT_LABELS)}")


if __name__ == "__main__":
    main()
