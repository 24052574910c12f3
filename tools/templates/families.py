"""Shipped workflows on transformers: the base and a LoRA on it as the concept, over one copy of the weights."""

from .parts import (
    FLUX,
    FLUX_LORA,
    GLASSES,
    QWEN,
    QWEN_LORA,
    SOURCES,
    WAN,
    WAN_LORA,
    Z_IMAGE,
    Z_IMAGE_LORA,
    Node,
    Workflow,
    sampler,
    save,
)

LOADS = ("Load the model, its text encoder and its VAE (the templates of ComfyUI name the same files), and a **LoRA** "
         "of a domain or style.")


def models(files, kind: str, lora: str, shift: Node | None = None) -> dict[str, Node]:
    """Diffusion model, text encoder and VAE by the stock loaders, and the LoRA on the model as the concept."""
    encoders = [name for name in files if SOURCES[name][0] == "text_encoders"]
    unet, vae = (next(name for name in files if SOURCES[name][0] == folder) for folder in ("diffusion_models", "vae"))
    loader = (Node("CLIPLoader", {"clip_name": encoders[0], "type": kind, "device": "default"}) if len(encoders) == 1
              else Node("DualCLIPLoader", {"clip_name1": encoders[0], "clip_name2": encoders[1], "type": kind,
                                           "device": "default"}))
    base = ("base", 0)
    if shift is not None:
        shift, base = {"shift": shift._replace(inputs={"model": base} | shift.inputs)}, ("shift", 0)
    return {
        "base": Node("UNETLoader", {"unet_name": unet, "weight_dtype": "default"}, "Base model"),
        **(shift or {}),
        "lora": Node("LoraLoaderModelOnly", {"model": base, "lora_name": lora, "strength_model": 1.0},
                     "Base + LoRA (concept)"),
        "clip": loader,
        "vae": Node("VAELoader", {"vae_name": vae}),
    }


def conditions(text: str = GLASSES) -> dict[str, Node]:
    return {"control": Node("CLIPTextEncode", {"text": text, "clip": ("clip", 0)}, "Control prompt"),
            "null": Node("CLIPTextEncode", {"text": "", "clip": ("clip", 0)}, "Unconditional (empty prompt)")}


def size(side: int) -> Node:
    return Node("EmptySD3LatentImage", {"width": side, "height": side, "batch_size": 1}, "Image size")


def decoded() -> Node:
    return Node("VAEDecode", {"samples": ("sampler", 0), "vae": ("vae", 0)})


def image(prefix: str) -> dict[str, Node]:
    return {"decode": decoded(), "save": save(prefix, ("decode", 0))}


def settings(**inputs) -> dict:
    return {"model": ("shift", 0), "concept_model": ("lora", 0), "scheduler": "simple"} | inputs


FAMILIES = [
    Workflow(
        "Z-Image and a LoRA as the Concept",
        "**Z-Image with two guidances.** The LoRA brings its domain, the plain base keeps the prompt: one copy of the "
        f"weights.\n\n{LOADS}\n\n"
        "More **concept_scale** is more of the LoRA. On Turbo models, which run at cfg 1, use the preset of *Flux*.",
        {
            "Models": models(Z_IMAGE, "lumina2", Z_IMAGE_LORA, Node("ModelSamplingAuraFlow", {"shift": 3.0})),
            "Conditions": {**conditions(), "size": size(1024)},
            "Sampling": {"sampler": sampler(**settings(steps=25, control_scale=4.0, sampler_name="res_multistep"))},
            "Image": image("z-image"),
        },
    ),
    Workflow(
        "Qwen-Image and a LoRA as the Concept",
        "**Qwen-Image with two guidances.** The LoRA brings its domain, the plain base keeps the prompt: one copy of "
        f"the weights.\n\n{LOADS}\n\n"
        "The LoRA acts beside fp8 weights, which stay as they are. More **concept_scale** is more of the LoRA.",
        {
            "Models": models(QWEN, "qwen_image", QWEN_LORA, Node("ModelSamplingAuraFlow", {"shift": 3.1})),
            "Conditions": {**conditions(), "size": size(1328)},
            "Sampling": {"sampler": sampler(**settings(steps=20, control_scale=2.5, sampler_name="euler"))},
            "Image": image("qwen-image"),
        },
    ),
    Workflow(
        "Flux and a LoRA, Distilled",
        "**LoRA guidance on a distilled base**, which has no unconditional of use: from the base towards the LoRA.\n\n"
        f"{LOADS}\n\n"
        "**scale** 1 is the LoRA alone, more goes beyond it. The KSampler stays at cfg 1, as Flux wants it.",
        {
            "Models": models(FLUX, "flux", FLUX_LORA),
            "Conditions": {
                "control": Node("CLIPTextEncode", {"text": GLASSES, "clip": ("clip", 0)}, "Prompt"),
                "strength": Node("FluxGuidance", {"conditioning": ("control", 0), "guidance": 3.5}),
                "size": size(1024),
            },
            "Guidances": {
                "preset": Node("GCFGPreset", {"preset": "LoRA guidance", "positive": ("strength", 0),
                                              "model_2": ("lora", 0), "scale": 1.5, "scale_2": 0.0, "weight": 0.0}),
                "guider": Node("GCFGGuider", {"model": ("base", 0), "negative": ("strength", 0),
                                              "guidance": ("preset", 0)}),
            },
            "Settings": {
                "noise": Node("RandomNoise", {"noise_seed": 2312}),
                "method": Node("KSamplerSelect", {"sampler_name": "euler"}),
                "sigmas": Node("BasicScheduler", {"model": ("base", 0), "scheduler": "simple", "steps": 20,
                                                  "denoise": 1.0}),
            },
            "Sampling": {"sampler": Node("SamplerCustomAdvanced", {
                "noise": ("noise", 0), "guider": ("guider", 0), "sampler": ("method", 0), "sigmas": ("sigmas", 0),
                "latent_image": ("size", 0)})},
            "Image": image("flux"),
        },
        below="Settings",
    ),
    Workflow(
        "Wan and a LoRA as the Concept",
        "**A video with two guidances.** The LoRA brings its domain, the plain base keeps the prompt: one copy of the "
        f"weights.\n\n{LOADS}\n\n"
        "A whole fine-tuned model? **Convert to Null-Text Model** with the empty prompt makes it a text-free concept.",
        {
            "Models": models(WAN, "wan", WAN_LORA, Node("ModelSamplingSD3", {"shift": 8.0})),
            "Conditions": {
                **conditions("a person wearing glasses turns to the camera"),
                "size": Node("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 33, "batch_size": 1},
                             "Video size"),
            },
            "Sampling": {"sampler": sampler(**settings(steps=30, control_scale=5.0, sampler_name="uni_pc"))},
            "Video": {
                "decode": decoded(),
                "save": Node("SaveAnimatedWEBP", {"images": ("decode", 0), "filename_prefix": "gcfg/wan", "fps": 16.0,
                                                  "lossless": False, "quality": 90, "method": "default"}),
            },
        },
    ),
]
