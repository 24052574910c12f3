"""A tiny model of every family of the host: its own classes at a few thousand weights, with latents and text that fit.

A family that a host does not know yet is absent there. ``FAMILIES`` names them all; ``available()`` those of this host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import comfy.supported_models
import torch
from comfy.ldm.modules.attention import attention_pytorch

from . import tiny
from .weights import generator

_FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 48,
         "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
         "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
         "txt_ids_dims": []}
_FLUX2 = _FLUX | {"image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
                  "axes_dim": [4, 4, 4, 4], "patch_size": 1, "global_modulation": True, "mlp_silu_act": True,
                  "qkv_bias": False, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
                  "txt_ids_dims": [3]}
_LONGCAT = _FLUX | {"guidance_embed": False, "vec_in_dim": None, "context_in_dim": 3584, "txt_ids_dims": [1, 2]}
_CHROMA = {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 32,
           "hidden_dim": 48, "n_layers": 1, "context_in_dim": 48, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2,
           "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
           "qkv_bias": True, "txt_ids_dims": [], "vec_in_dim": None}
_SD35 = tiny._SD3 | {"adm_in_channels": 64, "qk_norm": "rms", "x_block_self_attn_layers": [0], "depth": 2,
                     "context_embedder_config": {"target": "torch.nn.Linear",
                                                 "params": {"in_features": 48, "out_features": 128}}}
_LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": 32, "n_layers": 2,
           "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 1, "axes_dims": [4, 6, 6], "axes_lens": [300, 512, 512],
           "qk_norm": True, "multiple_of": 16, "ffn_dim_multiplier": 1.0, "rope_theta": 10000.0}
_WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 32, "out_dim": 16, "in_dim": 16, "num_heads": 2,
        "ffn_dim": 64, "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 32, "window_size": (-1, -1),
        "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "text_dim": 48, "text_len": 16}
_LTX = {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "cross_attention_dim": 32, "in_channels": 128, "caption_channels": 48}
_LTXAV = _LTX | {"image_model": "ltxav", "audio_attention_head_dim": 16, "audio_num_attention_heads": 2,
                 "audio_cross_attention_dim": 32, "connector_attention_head_dim": 16,
                 "connector_num_attention_heads": 3}
_HUNYUAN = {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
            "vec_in_dim": 32, "axes_dim": [4, 6, 6], "context_in_dim": 48, "hidden_size": 32, "mlp_ratio": 2.0,
            "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "theta": 256, "qkv_bias": True, "byt5": False,
            "guidance_embed": True, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None,
            "meanflow_sum": False}
_QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 48, "axes_dims_rope": (4, 6, 6)}
_KREA = {"image_model": "krea2", "features": 32, "channels": 16, "patch": 2, "layers": 2, "heads": 1, "kvheads": 1,
         "txtlayers": 2, "txtdim": 16, "txtheads": 1, "txtkvheads": 1, "tdim": 32}
_IDEOGRAM = {"image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 2,
             "attention_head_dim": 16, "intermediate_size": 64, "adaln_dim": 16, "llm_features_dim": 48,
             "rope_theta": 10000, "mrope_section": [2, 3, 3], "norm_eps": 1e-5}
_MINIMAX = {"image_model": "minimax_h3", "hidden_size": 32, "num_layers": 2, "token_refiner_num_layers": 1,
            "num_attention_heads": 2, "attention_head_dim": 16, "ffn_hidden_size": 64, "latents_dim": 24,
            "audio_latents_dim": 32, "text_dim": 48, "timestep_input_dim": 32, "time_embed_hidden_size": 32,
            "time_embed_dim": 16, "rope_inv_freq_len": 2}
_COSMOS = {"image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
           "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 32, "num_blocks": 2,
           "num_heads": 2, "mlp_ratio": 2.0, "crossattn_emb_channels": 48, "pos_emb_cls": "rope3d",
           "pos_emb_learnable": True, "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 8,
           "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False}
_COSMOS1 = {"image_model": "cosmos", "max_img_h": 64, "max_img_w": 64, "max_frames": 16, "in_channels": 16,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True,
            "model_channels": 64, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2.0, "crossattn_emb_channels": 48,
            "pos_emb_cls": "rope3d", "pos_emb_interpolation": "crop", "block_x_format": "THWBD",
            "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 8,
            "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"}
_HIDREAM = {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
            "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": [48, 32],
            "text_emb_dim": 64, "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": [8, 4, 4],
            "max_resolution": [128, 128], "llama_layers": [0, 1]}
_OMNIGEN = {"image_model": "omnigen2", "axes_dim_rope": [4, 6, 6], "axes_lens": [64, 64, 64], "hidden_size": 48,
            "in_channels": 16, "multiple_of": 16, "num_attention_heads": 3, "num_kv_heads": 1, "num_layers": 2,
            "num_refiner_layers": 1, "patch_size": 2, "text_feat_dim": 48, "timestep_scale": 1000.0}
_KANDINSKY = {"image_model": "kandinsky5", "model_dim": 64, "axes_dims": (8, 12, 12), "time_dim": 32, "ff_dim": 64,
              "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2, "in_text_dim": 48,
              "in_text_dim2": 32}
_PIXART = {"image_model": "pixart_sigma", "num_heads": 2, "patch_size": 2, "hidden_size": 32, "in_channels": 4,
           "depth": 2, "model_max_length": 16, "caption_channels": 48, "micro_condition": False, "input_size": 32,
           "pe_interpolation": 1}
_AURA = {"cond_seq_dim": 48, "max_seq": 256, "n_double_layers": 1, "n_layers": 2, "dim": 32, "n_heads": 2,
         "global_conddim": 32}
_ERNIE = {"image_model": "ernie", "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 64,
          "text_in_dim": 48, "rope_axes_dim": (4, 6, 6)}
_MAGE = {"image_model": "mage_flow", "in_channels": 128, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 48, "axes_dims_rope": (4, 6, 6)}
_LENS = {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "enc_hidden_dim": 48, "axes_dims_rope": (4, 6, 6),
         "multi_layer_encoder_feature": False}
_JOY = {"image_model": "joyimage", "in_channels": 16, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 48,
        "num_layers": 2, "rope_dim_list": [4, 6, 6], "patch_size": [1, 2, 2]}
_BOOGU = {"image_model": "boogu", "hidden_size": 48, "num_layers": 2, "num_double_stream_layers": 1,
          "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16,
          "axes_dim_rope": (4, 6, 6), "axes_lens": (64, 64, 64), "instruction_feat_dim": 48}
_HUNYUAN15 = _HUNYUAN | {"in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
                         "vision_in_dim": 1152, "use_cond_type_embedding": True, "guidance_embed": False}


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        config: name of the host's class in ``comfy.supported_models``.
        unet: its configuration.
        latent: (channels, *size); several of them where picture and sound go together.
        width: of the text.
        pooled: width of the pooled text, 0 for none.
        tokens: length of the text.
        extra: what else a conditioning holds, by name the shape of a random tensor.
        references: shapes of the latents of pictures that it edits.
        masked: whether its text comes with a mask.
        passes: forward passes a step for base[null], base[prompt] and a LoRA: 2 where the network regroups its batch,
            3 where it takes one row only.
        cross_attention: the suffix of the output layer of a cross-attention; "" where text and picture attend jointly.
    """

    config: str
    unet: Mapping
    latent: tuple
    width: int = 48
    pooled: int = 0
    tokens: int = 8
    extra: Mapping = field(default_factory=dict)
    references: tuple[tuple, ...] = ()
    masked: bool = False
    passes: int = 1
    cross_attention: str = ""

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        """A ModelPatcher with random weights."""
        real = getattr(comfy.supported_models, self.config)
        patcher = _built(real, dict(self.unet), seed, dtype)
        if self.masked:  # the host's attention for the CPU does not take every mask
            patcher.model_options["transformer_options"]["optimized_attention_override"] = _with_masks
        return patcher

    def conditioning(self, seed: int = 0, tokens: int | None = None) -> list:
        """A conditioning of random text."""
        extra = {name: torch.randn(shape, generator=generator(seed, name)) for name, shape in self.extra.items()}
        if self.references:  # the same for every text
            extra["reference_latents"] = [torch.randn(shape, generator=generator(0)) for shape in self.references]
        if self.masked:
            extra["attention_mask"] = torch.ones(1, tokens or self.tokens, dtype=torch.long)
        return tiny.conditioning(seed, tokens or self.tokens, self.width, 1, self.pooled, **extra)

    def latents(self, batch: int = 1) -> dict:
        """An empty LATENT."""
        if isinstance(self.latent[0], tuple):
            from comfy.nested_tensor import NestedTensor
            return {"samples": NestedTensor([torch.zeros(batch, *shape) for shape in self.latent])}
        return {"samples": torch.zeros(batch, *self.latent)}


FAMILIES = {
    "Stable Diffusion 1.5": Family("SD15", tiny._SD15, (4, 8, 8), 768, cross_attention="attn2.to_out.0"),
    "Stable Diffusion XL": Family("SDXL", tiny._SDXL, (4, 8, 8), 2048, 1280, cross_attention="attn2.to_out.0"),
    "Stable Diffusion 3.5": Family("SD3", _SD35, (16, 8, 8), 48, 64),
    "Flux.1": Family("Flux", _FLUX, (16, 8, 8), 48, 32),
    "Flux.1 Kontext": Family("Flux", _FLUX, (16, 8, 8), 48, 32, references=((1, 16, 8, 8),)),
    "Flux.2": Family("Flux2", _FLUX2, (128, 4, 4)),
    "Qwen-Image": Family("QwenImage", _QWEN, (16, 8, 8)),
    "Qwen-Image Edit": Family("QwenImage", _QWEN, (16, 8, 8), references=((1, 16, 1, 8, 8),)),
    "Z-Image": Family("ZImage", _LUMINA | {
        "z_image_modulation": True, "time_scale": 1000.0, "dim": 256, "n_heads": 16, "n_kv_heads": 16,
        "rope_theta": 256.0, "pad_tokens_multiple": 8}, (16, 8, 8), 32),
    "Lumina 2": Family("Lumina2", _LUMINA, (16, 8, 8), 32, masked=True),
    "Wan 2.1 text to video": Family("WAN21_T2V", _WAN, (16, 3, 8, 8), cross_attention="cross_attn.o"),
    "Wan 2.1 image to video": Family("WAN21_I2V", _WAN | {"model_type": "i2v", "in_dim": 36}, (16, 3, 8, 8),
                                     cross_attention="cross_attn.o"),
    "Wan 2.2 5B": Family("WAN22_T2V", _WAN | {"out_dim": 48, "in_dim": 48}, (48, 3, 8, 8),
                         cross_attention="cross_attn.o"),
    "Wan 2.1 VACE": Family("WAN21_Vace", _WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
                           (16, 3, 8, 8), cross_attention="cross_attn.o"),
    "LTX-Video": Family("LTXV", _LTX, (128, 3, 4, 4), masked=True, cross_attention="attn2.to_out.0"),
    "LTX-2 (video and sound)": Family("LTXAV", _LTXAV, ((128, 3, 4, 4), (8, 12, 16))),
    "HunyuanVideo": Family("HunyuanVideo", _HUNYUAN, (16, 3, 8, 8), 48, 32),
    "HunyuanImage 2.1": Family("HunyuanImage21", _HUNYUAN | {
        "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "vec_in_dim": None, "axes_dim": [8, 8]},
        (64, 4, 4)),
    "Chroma": Family("Chroma", _CHROMA, (16, 8, 8), 48, 32),
    "Krea 2": Family("Krea2", _KREA, (16, 8, 8), 32, passes=2),
    "Ideogram 4": Family("Ideogram4", _IDEOGRAM, (128, 4, 4)),
    "MiniMax H3": Family("MiniMaxH3", _MINIMAX, ((24, 2, 4, 4), (32, 2, 8)), passes=3),
    "Cosmos Predict2": Family("CosmosT2IPredict2", _COSMOS, (16, 1, 8, 8)),
    "Cosmos 1": Family("CosmosT2V", _COSMOS1, (16, 2, 8, 8), passes=2),
    "HiDream": Family("HiDream", _HIDREAM, (16, 8, 8), 48, 64, passes=2,
                      extra={"conditioning_llama3": (1, 2, 8, 32)}),
    "OmniGen 2": Family("Omnigen2", _OMNIGEN, (16, 8, 8), masked=True),
    "Kandinsky 5": Family("Kandinsky5Image", _KANDINSKY, (16, 1, 8, 8), 48, 32),
    "PixArt Sigma": Family("PixArtSigma", _PIXART, (4, 48, 48), passes=2),
    "AuraFlow": Family("AuraFlow", _AURA, (4, 8, 8)),
    "HunyuanVideo 1.5": Family("HunyuanVideo15", _HUNYUAN15, (32, 3, 4, 4), 48, 32),
    "LongCat-Image": Family("LongCatImage", _LONGCAT, (16, 8, 8), 3584),
    "ERNIE-Image": Family("ErnieImage", _ERNIE, (128, 4, 4)),
    "Mage-Flow": Family("MageFlow", _MAGE, (128, 4, 4)),
    "Lens": Family("Lens", _LENS, (128, 4, 4)),
    "JoyImage": Family("JoyImage", _JOY, (16, 1, 8, 8)),
    "Boogu-Image": Family("Boogu", _BOOGU, (16, 8, 8), masked=True),
}


def _built(real: type, unet: dict, seed: int, dtype: torch.dtype):
    """A ModelPatcher of a class at another size."""
    def build(known: dict):
        small = type(real.__name__, (real,), {"unet_extra_config": {**real.unet_extra_config, **known}})
        return tiny._patcher(small(known), seed, dtype)
    return tiny.as_known(build, unet)


def _with_masks(attention, *args, **kwargs):
    return attention_pytorch(*args, **kwargs)


def available() -> list[str]:
    """The families that this host has."""
    return [name for name, family in FAMILIES.items() if hasattr(comfy.supported_models, family.config)]
