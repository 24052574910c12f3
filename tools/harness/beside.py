"""Nodes of other packs that act on a MODEL at sampling, with inputs that a tiny model feels.

``attention`` patches change what the network predicts, so also the guidances on that MODEL; ``cfg`` patches change what
the sampler makes of its own pair of predictions, and leave others' alone.
"""

import torch

PAG, PRE = "sd-perturbed-attention", "pre_cfg_comfy_nodes_for_ComfyUI"
KJ, IPA = "ComfyUI-KJNodes", "ComfyUI_IPAdapter_plus"
MIDDLE = {"unet_block": "middle", "unet_block_id": 0}

# id: (pack, kind, inputs)
NODES = {
    "PerturbedAttention": (PAG, "cfg", MIDDLE),
    "SmoothedEnergyGuidanceAdvanced": (PAG, "cfg", MIDDLE),
    "SlidingWindowGuidanceAdvanced": (PAG, "cfg", {"tile_width": 48, "tile_height": 48, "tile_overlap": 32,
                                                   "sigma_end": -1.0}),
    "TokenPerturbationGuidance": (PAG, "cfg", {"unet_block_list": "m0"}),
    "FrequencyDecoupledGuidance": (PAG, "cfg", {}),
    "SlidingModeControlCFG": (PAG, "cfg", {}),
    "PLADIS": (PAG, "attention", {}),
    "NormalizedAttentionGuidance": (PAG, "attention", {}),
    "Pre CFG automatic scale": (PRE, "cfg", {}),
    "Pre CFG PAG": (PRE, "cfg", {}),
    "Pre CFG zero attention": (PRE, "cfg", {"attention": "both", **MIDDLE}),
    "Pre CFG channel multiplier": (PRE, "cfg", {"channel_1": 1.5, "channel_3": 0.4}),
    "Pre CFG multiplier": (PRE, "cfg", {"value": 1.3}),
    "Pre CFG norm neg to pos": (PRE, "cfg", {}),
    "Pre CFG subtract mean": (PRE, "cfg", {}),
    "Pre CFG variable scaling": (PRE, "cfg", {}),
    "Pre CFG gradient scaling": (PRE, "cfg", {}),
    "Pre CFG flip flop": (PRE, "cfg", {}),
    "Pre CFG replace negative channel": (PRE, "cfg", {}),
    "Pre CFG merge negative channel": (PRE, "cfg", {}),
    "Pre CFG exponentiation": (PRE, "cfg", {}),
    "Shape attention": (PRE, "attention", MIDDLE),
    "Excellent attention": (PRE, "attention", {}),
    "CFGZeroStarAndInit": (KJ, "cfg", {"use_zero_init": False}),
    "IPAdapterEmbeds": (IPA, "attention", {}),
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ip_adapter(width: int = 16, tokens: int = 4, context: int = 768, channels: int = 32) -> dict:
    """An IPAdapter file for the tiny SD1.5, as IPAdapterModelLoader gives it: its smallest form, of random weights."""
    projection = {"proj.weight": draw(tokens * context, width) / 4, "proj.bias": torch.zeros(tokens * context),
                  "norm.weight": torch.ones(context), "norm.bias": torch.zeros(context)}
    layers = {f"{2 * n + 1}.to_{kind}_ip.weight": draw(channels, context, seed=n) / context ** 0.5 * 3
              for n in range(16) for kind in "kv"}
    return {"image_proj": projection, "ip_adapter": layers}
