"""The attentions of one forward pass of the host, handed to a function of ours."""

from __future__ import annotations

from collections.abc import Callable

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

OVERRIDE = "optimized_attention_override"


def with_attention(network, transformer_options: dict, attention: Callable[..., Tensor]) -> dict:
    """Transformer options for one forward pass whose attentions are computed by ``attention``.

    Args:
        network: that runs them.
        attention: called as ``attention(attend, cross, q, k, v, heads, mask)``. ``attend(q, k, v)`` is the attention as
            it would have been, other packs' included; ``cross`` is True at the cross-attention of a U-Net's block,
            False at its self-attention and in other networks.
    """
    cross = False

    def note(is_cross: bool):
        """A patch of a U-Net's blocks that only says which attention comes next."""
        def patch(n, context, value, extra_options):
            nonlocal cross
            cross = is_cross
            return n, context, value
        return patch

    before = transformer_options.get(OVERRIDE)

    def override(function, q, k, v, heads, mask=None, *args, **kwargs):
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            call = (q, k, v, heads, mask, *args)
            return before(function, *call, **kwargs) if before else function(*call, **kwargs)
        return attention(attend, cross, q, k, v, heads, mask)

    patches = {name: list(listed) for name, listed in transformer_options.get("patches", {}).items()}
    if isinstance(network, UNetModel):
        for name, is_cross in (("attn1_patch", False), ("attn2_patch", True)):
            patches[name] = [*patches.get(name, []), note(is_cross)]
    return {**transformer_options, "patches": patches, OVERRIDE: override}
