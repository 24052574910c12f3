"""Genuine CLIP text encoders of ComfyUI with few layers, from a seed, with the host's own tokenizers.

Import it only where the host is on ``sys.path``.
"""

from types import SimpleNamespace

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import torch

from .weights import draw

_KINDS = {"sd15": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer, ("clip_l",)),
          "sdxl": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, ("clip_l", "clip_g"))}


def clip(kind: str = "sd15", seed: int = 0, embeddings: str | None = None, **config):
    """A ``CLIP`` as a loader node gives it, of three narrow layers at full width unless ``config`` says otherwise.

    Args:
        kind: "sd15" or "sdxl".
        embeddings: folder of ``embedding:`` files.
        config: of every encoder, as in the host's JSON files.
    """
    model, tokenizer, encoders = _KINDS[kind]
    config = {"num_hidden_layers": 3, "intermediate_size": 256, **config}
    options = {f"{name}_model_config": config for name in encoders}
    target = SimpleNamespace(params={}, clip=model, tokenizer=tokenizer)
    made = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options={**options, "dtype": torch.float32})
    with torch.no_grad():
        for name, tensor in made.cond_stage_model.state_dict().items():
            if "embedding" in name:  # rows of one table repeat: drawing all 49408 takes longer than a test
                few = draw(name, (min(len(tensor), 4096), tensor.shape[1]), seed) * 0.3 * tensor.shape[1] ** 0.5
                tensor.copy_(few.repeat(-(-len(tensor) // len(few)), 1)[:len(tensor)])
            elif tensor.ndim:
                tensor.copy_(draw(name, tuple(tensor.shape), seed))
    return made
