"""Shipped workflows as apps: a person who opens one sees a few inputs and a picture, no graph."""

from .parts import (
    STYLE,
    App,
    Node,
    Workflow,
    checkpoint,
    images,
    photo,
    prompts,
    sampler,
    size,
    unet,
)

MODELS = [("base", "ckpt_name"), ("concept", "unet_name")]
SCALES = [("sampler", "concept_scale"), ("sampler", "control_scale")]

APPS = [
    Workflow(
        "App - Picture of a Concept",
        "**As an app**: say what the picture shows; the concept model brings its domain.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "An older ComfyUI shows the graph. It is that of *Concept and Control*.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("concept", 0))},
            "Image": images("app picture"),
        },
        app=App([("control", "text"), *SCALES, ("sampler", "seed"), *MODELS], ["save"]),
    ),
    Workflow(
        "App - Translate a Picture",
        "**As an app**: a picture of yours becomes one of the concept's domain and keeps its layout.\n\n"
        "Load a base checkpoint, a concept model made from it, and an image.\n\n"
        "An older ComfyUI shows the graph. It is that of *Image to Image Translation*.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Image to translate": {
                **photo(),
                "encode": Node("VAEEncode", {"pixels": ("scale", 0), "vae": ("base", 2)}),
            },
            "Conditions": prompts("a portrait photo"),
            "Sampling": {"sampler": sampler(concept_model=("concept", 0), latent_image=("encode", 0), denoise=0.65,
                                            concept_scale=2.0)},
            "Image": images("app translation"),
        },
        app=App([("load", "image"), ("control", "text"), ("sampler", "denoise"), *SCALES, *MODELS], ["save"]),
    ),
    Workflow(
        "App - Stylize a Concept",
        "**As an app**: name a style; the concept model brings the subject.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "An older ComfyUI shows the graph. It is that of *Concept-centric Stylization*.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(STYLE), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("concept", 0), concept_scale=1.5, control_scale=3.0)},
            "Image": images("app stylization"),
        },
        app=App([("control", "text"), *SCALES, ("sampler", "seed"), *MODELS], ["save"]),
    ),
]
