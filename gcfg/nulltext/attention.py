"""The null-text layer: a cross-attention whose output is one constant vector, whatever the text is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

FEATURE = "null_text_feature"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


class RemovedProjection(nn.Module):
    """Stands where a projection of the removed cross-attention was, and says so to whoever uses it as a layer."""

    def __init__(self, name: str):
        super().__init__()
        self.reason = (f"this is a null-text concept model: its cross-attention was replaced by a constant and has no "
                       f"'{name}' layer; apply attention patches to the base model instead")

    def forward(self, *args, **kwargs):
        raise RuntimeError(self.reason)

    def __getitem__(self, index):
        raise RuntimeError(self.reason)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            reason = self.__dict__.get("reason")
            raise AttributeError(f"no '{name}': {reason}" if reason else str(error)) from None


class NullTextAttention(nn.Module):
    """Cross-attention with the constant output ``null_text_feature`` of shape (1, 1, C) (arXiv 2312.08195, code).

    The feature is a buffer: it is saved, moved and cast with the model and never trained. Whoever holds the layer adds
    the residual around it, as around the cross-attention that it replaces.
    """

    def __init__(self, feature: Tensor):
        super().__init__()
        self.register_buffer(FEATURE, feature.reshape(1, 1, -1))
        for name in PROJECTIONS:
            setattr(self, name, RemovedProjection(name))

    def forward(self, x: Tensor, *_, **__) -> Tensor:
        """The feature for every position of ``x`` (B, T, C), in its type and on its device.

        Text, values and masks are ignored, by whatever names ComfyUI or diffusers hand them over.
        """
        return self.null_text_feature.to(device=x.device, dtype=x.dtype).expand(x.shape)


def cross_attention_blocks(unet: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks of a UNet that hold a cross-attention, null-text or not, by name."""
    return {name: module for name, module in unet.named_modules()
            if isinstance(getattr(module, "attn2", None), nn.Module) and hasattr(module, "norm2")}


def is_null_text(unet: nn.Module) -> bool:
    """True if some cross-attention of the UNet is a constant."""
    return any(isinstance(block.attn2, NullTextAttention) for block in cross_attention_blocks(unet).values())


def replace_cross_attention(unet: nn.Module, features: Mapping[str, Tensor]) -> None:
    """Turn a UNet into a null-text model in place: attn2 becomes a constant, norm2 the identity, nothing else changes.

    Args:
        unet: a UNet in the host's layout.
        features: by name of the transformer block, a vector of C values, where C is the block's width.

    Raises:
        ValueError: the features do not belong to exactly the blocks of this UNet.
    """
    blocks = cross_attention_blocks(unet)
    if blocks.keys() != features.keys():
        odd = sorted(blocks.keys() ^ features.keys())
        raise ValueError(f"null-text features must match the {len(blocks)} cross-attention blocks of the model, "
                         f"but there are {len(features)} and these differ: {', '.join(odd[:3])}")
    for name, block in blocks.items():
        block.attn2 = NullTextAttention(features[name].detach())
        block.norm2 = nn.Identity()


def features_of(unet: nn.Module) -> dict[str, Tensor]:
    """The features of a null-text model by block, (1, 1, C) each; empty for any other model."""
    return {name: block.attn2.null_text_feature for name, block in cross_attention_blocks(unet).items()
            if isinstance(block.attn2, NullTextAttention)}


def empty_features(unet: nn.Module) -> dict[str, Tensor]:
    """Features without content (on the meta device) of the right sizes, for weights that are loaded afterwards."""
    return {name: torch.empty(block.attn2.to_out[0].out_features, device="meta")
            for name, block in cross_attention_blocks(unet).items()}
