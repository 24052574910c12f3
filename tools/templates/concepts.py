"""Shipped workflows that use a concept model: the paper's sampler and what it is for."""

from .parts import (
    ADAPTER,
    CONTROLNET,
    PIXEL_ART,
    STYLE,
    Node,
    Workflow,
    checkpoint,
    images,
    lora,
    photo,
    prompts,
    sampler,
    save,
    several,
    size,
    unet,
)

CONCEPTS = [
    Workflow(
        "Base and LoRA as the Concept",
        "**A LoRA as the concept model.** Both predictions run on one copy of the base's weights.\n\n"
        "Load a base checkpoint and a LoRA of any LyCORIS kind (**models/loras**). ComfyUI offers to download those "
        "named here: 27 MB of pixel art by artificialguybr, under the licence on its page.\n\n"
        "The LoRA gives fidelity, the plain base keeps the prompt: connect the base, not the LoRA, to **model**.",
        {
            "Models": {
                "base": checkpoint(),
                "lora": lora(PIXEL_ART, "Base + LoRA (concept)"),
            },
            "Conditions": {**prompts("a person wearing glasses"), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("lora", 0))},
            "Image": images("lora concept"),
        },
    ),
    Workflow(
        "Concept and Control",
        "**The paper's sampler.** The concept model gives fidelity to its domain, the base follows the prompt.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "Raise **concept_scale** for fidelity, **control_scale** for the prompt; 1.5 and 2.5 are a good start.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("concept", 0))},
            "Image": images("concept and control"),
        },
    ),
    Workflow(
        "Concept Adapter",
        "**A concept as a small file.** An adapter on the base: base and concept run on one copy of the weights.\n\n"
        "Load a base checkpoint, and a concept adapter or null-text model made from it (**models/concept_models**).\n\n"
        "The concept model ignores all text; its prediction is the unconditional one of its domain.",
        {
            "Models": {
                "base": checkpoint(),
                "concept": Node("GCFGLoadConceptModel", {"model": ("base", 0), "concept_name": ADAPTER,
                                                         "strength": 1.0}),
                "about": Node("PreviewAny", {"source": ("concept", 1)}, "What was loaded"),
            },
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("concept", 0))},
            "Image": images("concept adapter"),
        },
    ),
    Workflow(
        "Compare Base and Concept",
        "**What a concept model does.** From one seed: the base alone, the concept alone, and both together.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "The last picture is that of KSampler (GCFG). Then open *Scale Grid* for the scales.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(), "size": size()},
            "Comparison": {"compare": several("GCFGCompare", concept_scale=1.5, control_scale=2.5)},
            "Image": {"save": save("comparison", ("compare", 0))},
        },
    ),
    Workflow(
        "Scale Grid",
        "**Find the scales.** One seed over a grid: a row for each concept scale, a column for each control scale.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "Few steps are enough to choose. GCFG Grid varies windows, samplers, seeds and models in the same way.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(), "size": size()},
            "Grid": {"grid": several("GCFGScaleGrid", steps=12, concept_scales="0, 1, 1.5",
                                     control_scales="1, 2.5, 5")},
            "Image": {"save": save("scale grid", ("grid", 1))},
        },
    ),
    Workflow(
        "Image to Image Translation",
        "**Translation.** The image keeps its layout and becomes one of the concept's domain.\n\n"
        "Load a base checkpoint, a concept model made from it, and an image.\n\n"
        "Lower **denoise** keeps more of the image; higher **concept_scale** moves it further into the domain.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Image to translate": {
                **photo(),
                "encode": Node("VAEEncode", {"pixels": ("scale", 0), "vae": ("base", 2)}),
            },
            "Conditions": prompts("a portrait photo, wearing glasses"),
            "Sampling": {"sampler": sampler(concept_model=("concept", 0), latent_image=("encode", 0), denoise=0.65,
                                            concept_scale=2.0)},
            "Image": images("translation"),
        },
    ),
    Workflow(
        "Concept-centric Stylization",
        "**A style on the concept.** The concept model keeps its domain, the style alone is the control prompt.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "The prompt names no subject: the concept brings it. More **control_scale** is more style.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(STYLE), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("concept", 0), concept_scale=1.5, control_scale=3.0)},
            "Image": images("stylization"),
        },
    ),
    Workflow(
        "ControlNet on the Control Guidance",
        "**Spatial control.** The ControlNet acts on the control guidance only, not on concept and unconditional.\n\n"
        "Load a base checkpoint, a concept model made from it, a ControlNet for the base, and an image.\n\n"
        "Only the positive output of Apply ControlNet is used: that keeps the ControlNet out of the unconditional.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Edges": {
                **photo(),
                "edges": Node("Canny", {"image": ("scale", 0), "low_threshold": 0.2, "high_threshold": 0.5}),
            },
            "Conditions": {**prompts("a photo of a person, studio light"), "size": size()},
            "ControlNet": {
                "net": Node("ControlNetLoader", {"control_net_name": CONTROLNET}),
                "apply": Node("ControlNetApplyAdvanced", {
                    "positive": ("control", 0), "negative": ("null", 0), "control_net": ("net", 0),
                    "image": ("edges", 0), "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}),
            },
            "Sampling": {"sampler": sampler(concept_model=("concept", 0), positive=("apply", 0))},
            "Image": images("controlnet"),
        },
    ),
]
