"""All settings of a subject's training run, from a TOML file or from a node."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from .losses.semantic import PAPER_WEIGHT
from .settings import FREE, Settings, SettingsError

METHODS = ("K and V", "LoRA", "rows")


@dataclass(frozen=True)
class SubjectSettings(Settings):
    """ClassDiffusion's recipe unless told otherwise (arXiv 2405.17532, official code); see ``Settings`` for the rest.

    Attributes:
        run_name: name of the run's folder, of the LoRA file and of the word: ``embedding:NAME`` in a prompt.
        class_word: what the subject is, one token such as "dog".
        semantic_weight: of the semantic preservation loss; 0.25 is the paper's 1 (see ``semantic.PAPER_WEIGHT``).
        method: "K and V" trains keys and values of the cross-attention as in the paper, "LoRA" low-rank pairs on all
            layers, "rows" the word alone.
        words: rows of the new word.
        initial_word: a rare word from whose row they start.
        initial_embedding: an embedding file from which they start instead, as Tune Concept Words makes one.
        learning_rate: 2e-5 for "K and V" (the paper's 1e-5, doubled by its batch of 2); 1e-4 suits "LoRA".
        masks, augment, variants: see ``variants.Subject``.
        models: of the command line: folder whose ``embeddings`` and ``loras`` get the files; empty for ComfyUI's own.
    """

    run_name: str = "subject"
    target_steps: int = 500
    method: str = "K and V"
    learning_rate: float = 2e-5
    batch: int = 2
    ema: bool = False
    save_every: int = 100
    preview_every: int = 100
    held_out: int = 0
    held_out_every: int = 0
    class_word: str = ""
    semantic_weight: float = PAPER_WEIGHT
    words: int = 1
    initial_word: str = "ktn"
    initial_embedding: str = ""
    masks: str = ""
    augment: bool = True
    variants: int = 64
    models: str = ""

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = Settings.CHOICES | {"method": METHODS}
    FREE: ClassVar[set[str]] = FREE | {"initial_embedding", "masks", "models"}
    PATHS: ClassVar[tuple[str, ...]] = (*Settings.PATHS, "masks", "models")

    def subject(self, word: bool = True) -> str:
        """The subject in a prompt: its new word and its class, or without a ``word`` of its own the rare one."""
        return f"{f'embedding:{self.run_name}' if word else self.initial_word} {self.class_word}"

    def __post_init__(self):
        check_word(self.run_name)
        super().__post_init__()
        if not self.class_word.strip():
            raise SettingsError("class_word is empty; say in one word what the subject is, such as dog, cup or face.")
        if self.words < 1 or self.words > 8 or self.variants < 1:
            raise SettingsError("words must be from 1 to 8, variants at least 1.")


def check_word(name: str) -> None:
    """Refuse a name of a new word that the host would cut in a prompt (SettingsError)."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise SettingsError(f"the name is {name!r}; take letters, digits and _ only, because the host cuts an "
                            "embedding's name in a prompt at anything else.")
