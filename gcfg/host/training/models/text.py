"""The host's CLIP text encoders with a gradient, for rows of new words.

The host's own layers add in place (``x += ...``), which autograd refuses, and their weights may be inference tensors.
Here the same operations run over copies of the weights, to the bit what CLIP Text Encode gives a user later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import comfy.lora
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from torch import Tensor, nn
from torch.nn import functional as F

_NEW = re.compile(r"<(\d+)>")
_BODY = "transformer.text_model."
SUPPORTED = ({"l"}, {"h"}, {"g"}, {"l", "g"})
"""Text encoders to which new words can be taught, by the names that the host gives their parts."""

Rows = Mapping[str, Sequence[Tensor]]
"""By encoder ("l", "g"), the rows (n, C) of each new word."""


class Encoder:
    """One CLIP text encoder of the host.

    Args:
        stock: the host's ``SDClipModel``.
        weights: of its transformer, float32, by name.
    """

    def __init__(self, stock: nn.Module, weights: Mapping[str, Tensor]):
        self.weights = weights
        first, body = stock.transformer.text_model.encoder.layers[0], stock.transformer.text_model
        self.layers, self.heads = len(body.encoder.layers), first.self_attn.heads
        self.activation, self.epsilon = first.mlp.activation, first.layer_norm1.eps
        self.layer = None if stock.layer == "last" else stock.layer_idx % self.layers
        self.normed, self.projected = stock.layer_norm_hidden_state, stock.return_projected_pooled
        self.empty = {k for k in range(self.layers) if self._adds_nothing(f"{_BODY}encoder.layers.{k}.")}
        self.table = weights[f"{_BODY}embeddings.token_embedding.weight"]

    def embed(self, tokens: Sequence[int | Tensor]) -> Tensor:
        """Tokens (ids, or rows of new words) without their positions, (1, T, C)."""
        parts = [self.table[t][None] if isinstance(t, int) else t.view(-1, t.shape[-1]).float() for t in tokens]
        return torch.cat(parts)[None]

    def __call__(self, x: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the model reads and the end of each text, both of the last layer normed: (B, T, C), (B, C).

        Args:
            x: embedded tokens (B, T, C).
            ends: place of the end-of-text in each row.
        """
        length = x.shape[1]
        x = x + self.weights[f"{_BODY}embeddings.position_embedding.weight"][:length]
        mask = torch.full((length, length), -torch.finfo(x.dtype).max, device=x.device).triu_(1)
        chosen = None
        for k in range(self.layers):
            name = f"{_BODY}encoder.layers.{k}."
            if k not in self.empty:
                x = self._layer(x, name, mask)
            if k == self.layer:
                chosen = self._norm(x, f"{_BODY}final_layer_norm") if self.normed else x
        last = self._norm(x, f"{_BODY}final_layer_norm")
        return last if chosen is None else chosen, last[torch.arange(len(x)), list(ends)]

    def pooled_output(self, end: Tensor) -> Tensor:
        """The end of a text as the host hands it to a model, projected where the host does that."""
        return F.linear(end, self.weights["transformer.text_projection.weight"]) if self.projected else end

    def _adds_nothing(self, name: str) -> bool:
        """True for a layer of zeros, of which small encoders in CLIP-L's form have many."""
        ends = (f"{name}{layer}.{kind}" for layer in ("self_attn.out_proj", "mlp.fc2") for kind in ("weight", "bias"))
        return not any(bool(self.weights[end].any()) for end in ends)

    def _layer(self, x: Tensor, name: str, mask: Tensor) -> Tensor:
        x = x + self._attention(self._norm(x, f"{name}layer_norm1"), f"{name}self_attn.", mask)
        hidden = self.activation(self._linear(self._norm(x, f"{name}layer_norm2"), f"{name}mlp.fc1"))
        return x + self._linear(hidden, f"{name}mlp.fc2")

    def _attention(self, x: Tensor, name: str, mask: Tensor) -> Tensor:
        q, k, v = (self._linear(x, f"{name}{part}_proj") for part in "qkv")
        kernel = optimized_attention_for_device(x.device, mask=True, small_input=True)  # plain torch: it has a gradient
        return self._linear(kernel(q, k, v, self.heads, mask), f"{name}out_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.epsilon)


class TrainableText:
    """The text encoders of a CLIP of the host, frozen, for texts with new words: "a photo of a <0> dog".

    ``<k>`` stands for the rows of word k, as ``embedding:name`` does in the host's prompts.

    Args:
        clip: the host's CLIP; its LoRAs and its CLIP skip count. It is not changed.
        device: where.

    Raises:
        ValueError: a text encoder that is no CLIP.
    """

    def __init__(self, clip, device: torch.device):
        self.clip, self.device = clip, device
        names = set(clip.tokenize(""))
        if names not in SUPPORTED:
            raise ValueError(f"new words can be taught to the CLIP text encoders of SD1.5, SD2 and SDXL, but this one "
                             f"consists of {', '.join(sorted(names))}.")
        stage = clip.cond_stage_model
        stage.reset_clip_options()
        if clip.layer_idx is not None:
            stage.set_clip_options({"layer": clip.layer_idx})
        self.encoders = {name: Encoder(getattr(stage, f"clip_{name}"), self._weights(f"clip_{name}."))
                         for name in sorted(names, key="lgh".index)}
        stage.reset_clip_options()

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        """One encoder's weights with the CLIP's patches, as tensors of their own."""
        found = {}
        for key, (entry, *_) in self.clip.patcher.get_key_patches(prefix).items():
            weight, patches = entry[0].detach().to("cpu", torch.float32, copy=True), self.clip.patcher.patches.get(key)
            if patches:
                weight = comfy.lora.calculate_weight(patches, weight, key)
            found[key.removeprefix(prefix)] = weight.to(self.device)
        return found

    def ids(self, text: str) -> dict[str, list[int]]:
        """The tokens of a text without its start, end and padding, by encoder."""
        found = {}
        for name, (batch, *further) in self.clip.tokenize(text).items():
            if further:
                raise ValueError(f"'{text[:40]}...' is too long: at most {len(batch) - 2} tokens fit into one text.")
            tokens = [token for token, _ in batch]
            found[name] = tokens[1:1 + tokens[1:].index(self._frame(name)[1])]
        return found

    def _frame(self, name: str) -> tuple[int, int, int, int]:
        """Start, end, padding and length of every text."""
        tokens = [token for token, _ in self.clip.tokenize("")[name][0]]
        return tokens[0], tokens[1], tokens[-1], len(tokens)

    def row(self, word: str) -> dict[str, Tensor]:
        """The row (1, C) of a word's first token, by encoder."""
        return {name: self.encoders[name].table[ids[:1]].clone() for name, ids in self.ids(word).items()}

    def tokens(self, text: str, rows: Rows, name: str) -> tuple[list[int | Tensor], int]:
        """The tokens of a text for one encoder, padded, and the place of its end.

        Raises:
            ValueError: the text does not fit.
        """
        start, end, padding, length = self._frame(name)
        found: list[int | Tensor] = [start]
        for k, part in enumerate(_NEW.split(text)):
            found += list(rows[name][int(part)]) if k % 2 else self.ids(part)[name]
        if len(found) >= length:
            raise ValueError(f"'{text}' has {len(found) - 1} tokens; at most {length - 2} fit into one text.")
        return [*found, end, *[padding] * (length - 1 - len(found))], len(found)

    def conditioning(self, text: str, rows: Rows) -> list:
        """A text as CLIP Text Encode gives it, with a gradient to the rows: [[(1, T, C), {"pooled_output": ...}]]."""
        hidden, pooled = [], None
        for name, encoder in self.encoders.items():
            tokens, end = self.tokens(text, rows, name)
            states, ending = encoder(encoder.embed(tokens), [end])
            hidden.append(states)
            pooled = encoder.pooled_output(ending)  # of the last encoder, as the host does for SDXL
        return [[torch.cat(hidden, dim=-1), {"pooled_output": pooled}]]

    def meaning(self, texts: Sequence[str], rows: Rows, name: str = "") -> Tensor:
        """E(text), the normed end-of-text before any projection, (B, C), of one encoder (the first)."""
        encoder = self.encoders[name or next(iter(self.encoders))]
        name = name or next(iter(self.encoders))
        found = [self.tokens(text, rows, name) for text in texts]
        longest = max(end for _, end in found) + 1  # causal: what follows the end has no influence
        return encoder(torch.cat([encoder.embed(tokens[:longest]) for tokens, _ in found]), [e for _, e in found])[1]
