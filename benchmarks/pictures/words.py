"""A narrow CLIP text transformer: token ids (B, 77) -> features (B, 77, 64), causal, contextual.

Written twelve times side by side (``expand.text_encoder``) it is a CLIP-L of the stock form with the same function: the
LayerNorm of repeated channels is the repeated LayerNorm, each of the twelve heads of 64 is this one head, and the other
layers are zero, which the residual passes over. Parameters are named as in CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HIDDEN, LAYERS, LENGTH = 64, 256, 2, 77
START, END = 49406, 49407
CLIP_TOKENS = 49408


class Attention(nn.Module):
    """One causal head."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn, self.mlp = Attention(), MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Reads the CLIP tokens that it was made for; all others share row 0, "unknown".

    Args:
        tokens: the CLIP ids that it knows, (K,) int64.
    """

    def __init__(self, tokens: Tensor):
        super().__init__()
        self.register_buffer("tokens", tokens)
        self.token_embedding = nn.Parameter(torch.randn(len(tokens) + 1, WIDTH) * 0.5)
        self.position_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.final_layer_norm = nn.LayerNorm(WIDTH)
        for layer in self.layers:
            layer.self_attn.out_proj.weight.data *= 0.5
            layer.mlp.fc2.weight.data *= 0.5

    def rows_of(self, ids: Tensor) -> Tensor:
        """CLIP ids -> rows of the token embedding, 0 for unknown ones."""
        rows = torch.zeros(CLIP_TOKENS, dtype=torch.int64)
        rows[self.tokens] = torch.arange(1, len(self.tokens) + 1)
        return rows[ids]

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of the token embedding (B, 77) -> features."""
        return self.read(self.token_embedding[rows])

    def read(self, embedded: Tensor) -> Tensor:
        """Tokens as rows of the embedding or others of that size (B, 77, 64) -> features."""
        x = embedded + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)


PIECES = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
"""What CLIP's tokenizer takes apart first and reads one by one; of letters only the plain ones."""

UNKNOWN = 49405
"""Stands for a piece that is not in the table: a token that no caption has."""


class Table:
    """A tokenizer for the words of the training captions, equal to the stock one on them; it needs no ComfyUI.

    Args:
        pieces: CLIP ids of each piece of text.
    """

    def __init__(self, pieces: Mapping[str, list[int]]):
        self.pieces = pieces

    @classmethod
    def of(cls, texts: Iterable[str], tokenize: Callable[[str], list[int]]) -> Table:
        """All pieces of the texts, as another tokenizer reads them."""
        pieces = sorted({piece for text in texts for piece in PIECES.findall(text)})
        return cls({piece: [token for token in tokenize(piece) if token not in (START, END)] for piece in pieces})

    def __call__(self, text: str) -> list[int]:
        """77 ids: start, the pieces, end and end again."""
        ids = [token for piece in PIECES.findall(text.lower()) for token in self.pieces.get(piece, [UNKNOWN])]
        if len(ids) > LENGTH - 2:
            raise ValueError(f"'{text[:40]}...' is longer than {LENGTH - 2} tokens.")
        return [START, *ids, *[END] * (LENGTH - 1 - len(ids))]


def tokenizer() -> Callable[[str], list[int]]:
    """The stock tokenizer of ComfyUI (made importable first): text -> 77 CLIP ids, as CLIPTextEncode reads them."""
    from comfy.sd1_clip import SD1Tokenizer

    stock = SD1Tokenizer()

    def ids(text: str) -> list[int]:
        chunks = stock.tokenize_with_weights(text)["l"]
        if len(chunks) != 1:
            raise ValueError(f"'{text[:40]}...' is longer than 75 tokens.")
        return [token for token, _ in chunks[0]]

    return ids


def known(ids: Iterable[list[int]]) -> Tensor:
    """The sorted ids that occur, (K,) int64."""
    return torch.tensor(sorted({token for line in ids for token in line} | {START, END}))


def end_of(ids: Tensor) -> Tensor:
    """The place of the first end-of-text in ids (B, 77), (B,) int64."""
    return (ids == END).int().argmax(1)
