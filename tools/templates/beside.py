"""Shipped workflows with nodes of other packs, which ComfyUI offers to install: tools/harness/packs.py names them."""

from .parts import (
    IMAGE_ENCODER,
    IP_ADAPTER,
    MOTION,
    SUBJECT,
    Node,
    Workflow,
    checkpoint,
    guidance,
    images,
    prompt,
    sampler,
    size,
    unconditional,
)

BESIDE = [
    Workflow(
        "IP-Adapter on a Guidance, Base Clean",
        "**A picture as a prompt.** What IP-Adapter draws from it is one guidance; the base stays as it is.\n\n"
        "Needs the pack *ComfyUI_IPAdapter_plus*. Load an SD1.5 checkpoint, IP-Adapter (**models/ipadapter**), and its "
        f"image encoder, saved as *{IMAGE_ENCODER}*.\n\n"
        "**scale**: from 0, the plain prompt, to **control_scale**, all of the picture. **mask** and **start_percent** "
        "say where and when. Another picture is another guidance.",
        {
            "Models": {
                "base": checkpoint(),
                "adapter": Node("IPAdapterModelLoader", {"ipadapter_file": IP_ADAPTER}),
                "encoder": Node("CLIPVisionLoader", {"clip_name": IMAGE_ENCODER}, "Image encoder"),
            },
            "Picture": {
                "picture": Node("LoadImage", {"image": "example.png"}, "The picture"),
                "shown": Node("IPAdapterAdvanced", {
                    "model": ("base", 0), "ipadapter": ("adapter", 0), "image": ("picture", 0),
                    "clip_vision": ("encoder", 0), "weight": 1.0, "weight_type": "linear", "combine_embeds": "concat",
                    "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}),
            },
            "Conditions": {"control": prompt("a portrait in a forest, soft light", "Control prompt"),
                           "null": unconditional(), "size": size()},
            "Guidance": {"picture guidance": guidance(
                "The picture", 4.0, model=("shown", 0), conditioning=("control", 0), reference="custom",
                reference_conditioning=("control", 0))},
            "Sampling": {"sampler": sampler(concept_scale=0.0, control_scale=5.0, guidance=("picture guidance", 0))},
            "Image": images("ip adapter"),
        },
    ),
    Workflow(
        "A Personalized Video",
        "**Your own subject moves.** Its LoRA and its word are a guidance behind AnimateDiff, on one copy of the "
        "weights.\n\n"
        "Needs the pack *ComfyUI-AnimateDiff-Evolved*. Load an SD1.5 checkpoint, a motion module "
        "(**models/animatediff_models**), and the LoRA of *Your Own Subject*.\n\n"
        "**scale**: from 0, any dog that moves, to **control_scale**, yours. The LoRA stands behind *Use Evolved "
        "Sampling*, never before it.",
        {
            "Models": {
                "base": checkpoint(),
                "module": Node("ADE_LoadAnimateDiffModel", {"model_name": MOTION}),
                "motion": Node("ADE_ApplyAnimateDiffModelSimple", {"motion_model": ("module", 0)}),
            },
            "Motion": {
                "moving": Node("ADE_UseEvolvedSampling", {"model": ("base", 0), "m_models": ("motion", 0),
                                                          "beta_schedule": "autoselect"}),
                "subject": Node("LoraLoaderModelOnly", {"model": ("moving", 0), "lora_name": SUBJECT,
                                                        "strength_model": 1.0}, "Your subject, moving"),
            },
            "Conditions": {
                "named": prompt("embedding:my_dog dog running on a beach", "With the subject"),
                "class": prompt("dog running on a beach", "The same with the class alone"),
                "null": unconditional(),
                "frames": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 16}, "Size and frames"),
            },
            "Guidance": {"likeness": guidance(
                "The subject", 4.0, model=("subject", 0), conditioning=("named", 0), reference="custom",
                reference_conditioning=("class", 0))},
            "Sampling": {"sampler": sampler(model=("moving", 0), positive=("class", 0), latent_image=("frames", 0),
                                            concept_scale=0.0, control_scale=7.5, guidance=("likeness", 0))},
            "Video": {
                "decode": Node("VAEDecode", {"samples": ("sampler", 0), "vae": ("base", 2)}),
                "save": Node("SaveAnimatedWEBP", {"images": ("decode", 0), "filename_prefix": "gcfg/subject video",
                                                  "fps": 8.0, "lossless": False, "quality": 90, "method": "default"}),
            },
        },
    ),
]
