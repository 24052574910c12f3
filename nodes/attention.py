"""Nodes that work on attention: pictures that look at others, regions that words take, masks that share a picture."""

import comfy.samplers
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from nodes import common_ksampler

from ..gcfg.attention.regions import blended, regions
from ..gcfg.host.attention.regions import first_steps, word_maps, word_positions
from ..gcfg.host.attention.shared import References, share_attention
from .hosts import aliases, plain_errors
from .sampling import MAX_SEED

CATEGORY = "GCFG/attention"
COLOURS = ((0.90, 0.32, 0.28), (0.22, 0.52, 0.86), (0.30, 0.68, 0.38))  # of the regions in the preview


class GCFGSharedAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGSharedAttention",
            display_name="GCFG Shared Attention",
            category=CATEGORY,
            description=("A model whose pictures look at reference pictures while they are made, by shared "
                         "self-attention (FreeCustom, arXiv 2405.13870). Put it on a Guidance to set its strength."),
            **aliases("reference", "style", "consistent subject", "ip adapter", "style aligned"),
            inputs=[
                io.Model.Input("model", tooltip="A U-Net (SD1.5, SDXL), SD3 or Flux model."),
                io.Latent.Input("reference", tooltip=(
                    "The reference picture from VAE Encode, of the size of the picture to be made. A batch is several "
                    "references.")),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Sampling progress from which on the picture looks at its references."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Sampling progress at which it stops to. Outside, nothing is spent."),
                io.Int.Input("noise_seed", default=0, min=0, max=MAX_SEED, control_after_generate=False, tooltip=(
                    "Seed of the noise that takes the references to each noise level.")),
                io.Mask.Input("reference_mask", optional=True, tooltip=(
                    "The part of the reference that may be looked at: the subject without its background.")),
            ],
            outputs=[io.Model.Output("shared_model", display_name="model", tooltip="The model with its references.")],
        )

    @classmethod
    @plain_errors
    def execute(cls, model, reference, start_percent, end_percent, noise_seed, reference_mask=None) -> io.NodeOutput:
        if start_percent > end_percent:
            raise ValueError(f"start_percent {start_percent} lies after end_percent {end_percent}; exchange them.")
        references = References(reference["samples"], reference_mask, start_percent, end_percent, noise_seed)
        return io.NodeOutput(share_attention(model, references))


class GCFGRegionsFromPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGRegionsFromPrompt",
            display_name="GCFG Regions from Prompt",
            category=CATEGORY,
            description=("Finds where words of a prompt will lie in the picture, from the attention to them in the "
                         "first steps, and gives a mask for each. Use the sampler's own seed and settings."),
            is_output_node=True,
            **aliases("mask", "attention map", "region", "segment", "prompt"),
            inputs=[
                io.Model.Input("model", tooltip="The base model: a U-Net (SD1.5, SDXL), SD3 or Flux."),
                io.Clip.Input("clip", tooltip="The text encoder that encodes the prompt."),
                io.String.Input("text", multiline=True, tooltip="The prompt of the whole picture."),
                io.String.Input("words", tooltip=(
                    "Up to three words of the prompt, separated by commas, one for each region: cat, dog")),
                io.Conditioning.Input("negative", tooltip="The sampler's negative conditioning."),
                io.Latent.Input("latent_image", tooltip="The sampler's latent image."),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                             tooltip="The sampler's seed: with another one the picture lies elsewhere."),
                io.Int.Input("steps", default=25, min=1, max=10000, tooltip="The sampler's number of steps."),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="The sampler's scale of the prompt."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m",
                               tooltip="The sampler's algorithm."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="karras",
                               tooltip="The sampler's scheduler."),
                io.Float.Input("until", default=0.3, min=0.0, max=1.0, step=0.01, tooltip=(
                    "The part of the steps that is run to find the regions. The layout is settled early.")),
                io.Float.Input("threshold", default=0.4, min=0.0, max=1.0, step=0.01, tooltip=(
                    "From which part of its largest attention on a place belongs to a word. 0 divides the whole "
                    "picture among the words.")),
                io.Float.Input("feather", default=1.0, min=0.0, max=32.0, step=0.1, tooltip=(
                    "Width of the soft edge, in cells of the latent (8 pixels).")),
            ],
            outputs=[
                *[io.Mask.Output(f"mask_{i}", display_name=f"mask_{i}", tooltip=f"Region of word {i}.")
                  for i in (1, 2, 3)],
                io.Mask.Output("rest", display_name="rest", tooltip="What belongs to no word."),
                io.Image.Output("preview", display_name="preview", tooltip="The regions in colours."),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, model, clip, text, words, negative, latent_image, seed, steps, cfg, sampler_name, scheduler,
                until, threshold, feather) -> io.NodeOutput:
        listed = [word.strip() for word in words.split(",") if word.strip()]
        if not 1 <= len(listed) <= 3:
            raise ValueError(f"Name one to three words of the prompt, separated by commas, not {len(listed)}.")
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        length = positive[0][0].shape[1]
        positions = word_positions(clip, text, listed, length)
        maps = word_maps(model, positions, length, lambda watched: common_ksampler(
            watched, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image,
            last_step=first_steps(steps, until)))
        masks = F.interpolate(regions(maps, threshold, feather), scale_factor=8, mode="bilinear")
        missing = ExecutionBlocker(f"There are only {len(listed)} words; use the masks of these.")
        each = [*masks.unbind(1), *[missing] * (3 - len(listed))]
        image = coloured(masks)
        return io.NodeOutput(*each, 1 - masks.sum(dim=1), image, ui=ui.PreviewImage(image, cls=cls))


class GCFGBlendMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGBlendMasks",
            display_name="GCFG Blend Masks",
            category=CATEGORY,
            description=("Masks that share a picture: soft edges, and where they overlap each gets its part, so that "
                         "two masked guidances never count twice."),
            **aliases("mask", "region", "blend", "normalise"),
            inputs=[
                io.Mask.Input("mask_1", tooltip="The first region."),
                io.Mask.Input("mask_2", tooltip="The second region. It is brought to the size of the first."),
                io.Float.Input("feather", default=8.0, min=0.0, max=256.0, step=0.5,
                               tooltip="Width of the soft edge in pixels of the mask."),
                io.Mask.Input("mask_3", optional=True, tooltip="A third region."),
            ],
            outputs=[
                *[io.Mask.Output(f"blended_{i}", display_name=f"mask_{i}", tooltip=f"Region {i}.") for i in (1, 2, 3)],
                io.Mask.Output("rest", display_name="rest", tooltip="What belongs to no region."),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, mask_1, mask_2, feather, mask_3=None) -> io.NodeOutput:
        given = [mask for mask in (mask_1, mask_2, mask_3) if mask is not None]
        batch, size = max(len(mask) for mask in given), mask_1.shape[-2:]
        if any(len(mask) not in (1, batch) for mask in given):
            raise ValueError(f"The masks have batches of {', '.join(str(len(mask)) for mask in given)}; give single "
                             "masks, or as many of each.")
        scaled = [F.interpolate(mask[:, None].float(), size, mode="bilinear").expand(batch, -1, -1, -1)
                  for mask in given]
        masks = blended(torch.cat(scaled, dim=1), feather)
        missing = ExecutionBlocker("Connect mask_3 to use its output.")
        return io.NodeOutput(*masks.unbind(1), *[missing] * (3 - len(given)), 1 - masks.sum(dim=1))


def coloured(masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, n, H, W) as an IMAGE (B, H, W, 3): a colour for each, grey where there is none."""
    colours = torch.tensor(COLOURS[:masks.shape[1]])
    rest = 1 - masks.sum(dim=1, keepdim=True)
    return (masks.movedim(1, -1) @ colours + rest.movedim(1, -1) * 0.85).clamp(0, 1)


NODES = [GCFGSharedAttention, GCFGRegionsFromPrompt, GCFGBlendMasks]
