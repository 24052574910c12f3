"""Prompts of a text encoder that learns no new words, encoded once: a rare word stands for the subject."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.model_management
import torch
from torch import Tensor

from .text import Rows


class FixedPrompts:
    """In the place of ``TrainableText`` for T5 and language models: the same texts, "a photo of a <0> dog", frozen.

    Args:
        clip: the host's CLIP.
        word: what is written for ``<0>``.
        texts: all that will be asked for.
    """

    def __init__(self, clip, word: str, texts: Iterable[str]):
        with torch.inference_mode():
            tokens = {text: clip.tokenize(text.replace("<0>", word)) for text in texts}
            encoded = {text: clip.encode_from_tokens_scheduled(found) for text, found in tokens.items()}
        comfy.model_management.unload_all_models()
        self.known = {text: [[_own(features), {key: _own(value) for key, value in extra.items()}]
                             for features, extra in found] for text, found in encoded.items()}

    def ids(self, text: str) -> dict[str, list[int]]:
        """None: its tokens are no rows."""
        return {}

    def row(self, word: str) -> dict[str, Tensor]:
        """None: it has no rows to begin from."""
        return {}

    def conditioning(self, text: str, rows: Rows) -> list:
        """A text as CLIP Text Encode gives it."""
        return self.known[text]


def _own(value):
    """A tensor that training may keep, unlike those of inference mode."""
    return torch.empty_like(value, dtype=value.dtype).copy_(value) if isinstance(value, Tensor) else value
