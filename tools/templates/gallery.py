"""Shipped workflows of the listing (docs/PAPERS.md): what personalization papers give, as guidances."""

from .parts import (
    CONTROLNET,
    LORA,
    OFFICIAL,
    SECOND_SUBJECT,
    Node,
    Workflow,
    checkpoint,
    guidance,
    images,
    lora,
    photo,
    prompt,
    sampler,
    size,
    unconditional,
)

WHOLE = "a photo of a wizard and a cat in a garden"


def refined(title: str, scale: float, **inputs) -> Node:
    """A subject, measured from the base under the prompt of the whole picture: what it adds to that."""
    return guidance(title, scale, reference="custom", reference_conditioning=("control", 0), **inputs)


def regions(words: str) -> Node:
    """Masks for words, with the settings of ``sampler``."""
    return Node("GCFGRegionsFromPrompt", {
        "model": ("base", 0), "clip": ("base", 1), "text": WHOLE, "words": words, "negative": ("null", 0),
        "latent_image": ("size", 0), "seed": 2312, "cfg": 5.0, **OFFICIAL, "until": 0.3, "threshold": 0.4,
        "feather": 1.5})


GALLERY = [
    Workflow(
        "Two LoRAs, Regions from Words",
        "**Two LoRAs in one picture, without bleeding.** The base places both; then each acts in its own region.\n\n"
        "Load a base checkpoint and two LoRAs made for it; write their words into their prompts.\n\n"
        "The regions are found from the words. Draw masks instead: Blend Masks. One copy of the weights runs all.",
        {
            "Models": {"base": checkpoint(), "first": lora(LORA, "LoRA of the wizard"),
                       "second": lora(SECOND_SUBJECT, "LoRA of the cat")},
            "Conditions": {
                "control": prompt(WHOLE, "The whole picture"),
                "one": prompt("a photo of a wizard", "The wizard, with its LoRA's words"),
                "two": prompt("a photo of a cat", "The cat, with its LoRA's words"),
                "null": unconditional(), "size": size(),
            },
            "Regions": {"regions": regions("wizard, cat")},
            "Subjects": {
                "wizard": refined("Wizard", 3.0, model=("first", 0), conditioning=("one", 0), mask=("regions", 0),
                                  start_percent=0.3, end_percent=0.9),
                "cat": refined("Cat", 3.0, model=("second", 0), conditioning=("two", 0), mask=("regions", 1),
                               guidance=("wizard", 0), start_percent=0.3, end_percent=0.9),
            },
            "Sampling": {"sampler": sampler(control_scale=5.0, guidance=("cat", 0))},
            "Image": images("two subjects"),
        },
    ),
    Workflow(
        "A Learned Word, Refined from its Class",
        "**Textual inversion that still listens.** The class word makes the picture, the learned word adds its own.\n\n"
        "Load a checkpoint; put the embedding into **models/embeddings** and its name into the prompt.\n\n"
        "Scale 0 of the guidance is the class alone; the sampler's control_scale is the learned word alone.",
        {
            "Model": {"base": checkpoint(), "size": size()},
            "Conditions": {
                "control": prompt("a photo of a cat on a beach, wearing sunglasses", "Class prompt"),
                "word": prompt("a photo of embedding:my_cat cat on a beach, wearing sunglasses", "With the word"),
                "null": unconditional(),
            },
            "Guidance": {"refine": refined("The word", 4.0, conditioning=("word", 0))},
            "Sampling": {"sampler": sampler(control_scale=5.0, guidance=("refine", 0))},
            "Image": images("learned word"),
        },
    ),
    Workflow(
        "Class First, Subject Later",
        "**Delayed subject conditioning.** The base lays out the picture, then the subject's LoRA takes over.\n\n"
        "Load a base checkpoint, and a LoRA of your subject.\n\n"
        "A later **start_percent** listens more, an earlier one is more alike. Before it the LoRA costs nothing.",
        {
            "Models": {"base": checkpoint(), "tuned": lora(LORA, "LoRA of the subject")},
            "Conditions": {
                "control": prompt("a photo of a person riding a bicycle", "Class prompt"),
                "subject": prompt("a photo of sks person riding a bicycle", "With the LoRA's words"),
                "null": unconditional(), "size": size(),
            },
            "Guidance": {"later": refined("Subject", 5.0, model=("tuned", 0), conditioning=("subject", 0),
                                          start_percent=0.2)},
            "Sampling": {"sampler": sampler(control_scale=5.0, guidance=("later", 0))},
            "Image": images("subject later"),
        },
    ),
    Workflow(
        "A Subject Led by a ControlNet",
        "**One guidance with its own LoRA and its own ControlNet.** The base and its prompt stay free of both.\n\n"
        "Load a base checkpoint, a LoRA, a ControlNet for the base, and an image.\n\n"
        "The prompt's strength is control_scale, the subject's is the scale of its guidance.",
        {
            "Models": {"base": checkpoint(), "tuned": lora(LORA, "LoRA of the subject")},
            "Edges": {**photo(), "edges": Node("Canny", {"image": ("scale", 0), "low_threshold": 0.2,
                                                         "high_threshold": 0.5})},
            "Conditions": {
                "control": prompt("a garden in the evening, lanterns", "Prompt"),
                "subject": prompt("a photo of sks person", "With the LoRA's words"),
                "null": unconditional(), "size": size(),
            },
            "ControlNet": {
                "net": Node("ControlNetLoader", {"control_net_name": CONTROLNET}),
                "apply": Node("ControlNetApplyAdvanced", {
                    "positive": ("subject", 0), "negative": ("null", 0), "control_net": ("net", 0),
                    "image": ("edges", 0), "strength": 0.8, "start_percent": 0.0, "end_percent": 1.0}),
            },
            "Guidance": {"led": guidance("Subject", 3.0, model=("tuned", 0), conditioning=("apply", 0))},
            "Sampling": {"sampler": sampler(control_scale=3.0, guidance=("led", 0))},
            "Image": images("led subject"),
        },
    ),
    Workflow(
        "A Reference Picture by Shared Attention",
        "**A subject from one picture, without training.** The picture looks at the reference while it is made.\n\n"
        "Load a checkpoint and a picture; a mask of the subject (mask editor) keeps its background out.\n\n"
        "The guidance's scale is the strength: 0 is the prompt alone.",
        {
            "Model": {"base": checkpoint(), "size": size()},
            "Reference": {**photo(), "encode": Node("VAEEncode", {"pixels": ("scale", 0), "vae": ("base", 2)})},
            "Conditions": {
                "control": prompt("a cat reading a newspaper, photo", "Prompt"),
                "null": unconditional(),
                "shared": Node("GCFGSharedAttention", {
                    "model": ("base", 0), "reference": ("encode", 0), "start_percent": 0.0, "end_percent": 0.8,
                    "noise_seed": 0}),
            },
            "Guidance": {"look": refined("Reference", 2.0, model=("shared", 0), conditioning=("control", 0))},
            "Sampling": {"sampler": sampler(control_scale=5.0, guidance=("look", 0))},
            "Image": images("shared attention"),
        },
    ),
]
