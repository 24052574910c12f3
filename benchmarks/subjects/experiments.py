"""The two experiments: one subject over the semantic weight, and several confusable subjects told apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gcfg.training.losses.contrastive import equal, info_nce
from gcfg.training.losses.semantic import semantic_preservation

from .world import IDS, PHOTO, SCALE, WIDTH, TextEncoder, World

CLASS, IDENTITY, BACKGROUND = "class0", "attribute5", "snow"
REQUESTS = [(["wearing", "hat"], ["hat"]), (["and", "beach"], ["beach"]), (["wearing", "glasses"], ["glasses"]),
            (["wearing", "hat", "and", "beach"], ["hat", "beach"])]
"""What is asked for beside the subject, and what it means."""
SUBJECTS = 6
FORMS = ("not tuned", "official form", "without mix", "ours")


def subject(world: World, encoder: TextEncoder, weight: float, steps: int = 400) -> dict[str, float]:
    """One new word learned from four pictures that share a background, at a weight of the semantic loss."""
    pictures = torch.stack([world.picture([CLASS, IDENTITY, BACKGROUND]) for _ in range(4)])
    row = encoder.words.weight[IDS["cartoon"]].clone()[None].requires_grad_(True)
    new, plain = [PHOTO + [0, CLASS]], [PHOTO + [CLASS]]
    optimizer = torch.optim.AdamW([row], 1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = (1.0 - encoder(new, row) @ pictures.T).mean()
        loss = loss + weight * semantic_preservation(encoder.pooled(new, row), encoder.pooled(plain))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        asked = encoder([PHOTO + [0, CLASS, *words] for words, _ in REQUESTS], row)
        class_alone = encoder([PHOTO + [CLASS, *words] for words, _ in REQUESTS])
        wanted = torch.stack([F.normalize(sum(world.directions[a] for a in meaning), dim=0) for _, meaning in REQUESTS])
        both = torch.stack([world.picture([CLASS, IDENTITY, *meaning], 0.0) for _, meaning in REQUESTS])
        itself = encoder(new, row)[0]
        return {"semantic distance": float(semantic_preservation(encoder.pooled(new, row), encoder.pooled(plain))),
                "new word present": float((asked * wanted).sum(1).mean()),
                "new word present, class alone": float((class_alone * wanted).sum(1).mean()),
                "composition": float((asked * both).sum(1).mean()),
                "identity": float(itself @ world.directions[IDENTITY]),
                "background absorbed": float(itself @ world.directions[BACKGROUND])}


def subjects(world: World, encoder: TextEncoder, form: str, steps: int = 300, batch: int = 32) -> dict[str, float]:
    """Six subjects of two new words each, which share attributes, tuned in one of ``FORMS``."""
    traits = [["attribute0", f"attribute{1 + k % 3}", f"attribute{4 + k // 2}"] for k in range(SUBJECTS)]
    rows = encoder.words.weight[IDS["cartoon"]].repeat(2 * SUBJECTS, 1).clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([rows], 1e-2, weight_decay=0.0)
    for _ in range(0 if form == "not tuned" else steps):
        samples = [_sample(world, traits, mix=form != "without mix") for _ in range(batch)]
        shown = torch.stack([picture for picture, _ in samples])
        texts = [_text(*names) for _, names in samples]
        if form == "official form":
            loss = _official(shown * WIDTH**0.5 * 2.0, encoder.projection(encoder.pooled(texts, rows)))
        else:
            loss = info_nce(shown, encoder(texts, rows), SCALE, equal([tuple(sorted(names)) for _, names in samples]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _told_apart(world, encoder, rows.detach(), traits)


def _text(*names: int) -> list:
    """"a photo of a NAME (and NAME)", two new words a name."""
    words = [[2 * k, 2 * k + 1] for k in names]
    return PHOTO + (words[0] if len(words) == 1 else [*words[0], "and", *words[1]])


def _sample(world: World, traits: list[list[str]], mix: bool) -> tuple[Tensor, tuple[int, ...]]:
    """A picture and its subjects: a whole view, a region (two draws of a trait), or a mix of two subjects."""
    a, b, kind = world.pick(SUBJECTS), world.pick(SUBJECTS), world.pick(3 if mix else 2)
    if kind == 1:
        return world.picture([traits[a][world.pick(3)], traits[a][world.pick(3)]]), (a,)
    if kind == 2 and a != b:
        return world.picture(traits[a] + traits[b]), (a, b)
    return world.picture(traits[a]), (a,)


def _official(image: Tensor, text: Tensor) -> Tensor:
    """The loss of the official code, to compare with: features as they are, equal captions as negatives."""
    similarity, own = 100.0 * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


@torch.no_grad()
def _told_apart(world: World, encoder: TextEncoder, rows: Tensor, traits: list[list[str]]) -> dict[str, float]:
    alone = encoder([_text(k) for k in range(SUBJECTS)], rows)
    views = torch.stack([world.picture(traits[k]) for k in range(SUBJECTS) for _ in range(40)])
    found = (views @ alone.T).argmax(1) == torch.arange(SUBJECTS).repeat_interleave(40)
    pairs = [(a, b) for a in range(SUBJECTS) for b in range(a + 1, SUBJECTS)]
    together = encoder([_text(a, b) for a, b in pairs], rows)
    pictures = torch.stack([world.picture(traits[a] + traits[b], 0.0) for a, b in pairs]
                           + [world.picture(traits[k], 0.0) for k in range(SUBJECTS)])
    attended = (together @ pictures.T).argmax(1) == torch.arange(len(pairs))
    return {"retrieval": float(found.float().mean()),
            "largest cosine between subjects": float((alone @ alone.T - torch.eye(SUBJECTS)).max()),
            "pair attended": float(attended.float().mean())}
