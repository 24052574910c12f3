"""Shipped workflows that make concept models."""

from .parts import (
    GLASSES,
    RUN,
    TUNED,
    Node,
    Workflow,
    checkpoint,
    images,
    prompts,
    sampler,
    size,
    training,
    unet,
)

MODELS = [
    Workflow(
        "Train a Concept Model",
        "**Your own concept model, from pictures without captions.** Interrupt it when you like; Run goes on.\n\n"
        "Load a base checkpoint, and name the **folder** of your pictures (some hundred or more of one kind).\n\n"
        "Hours of work for a GPU, and the queue waits: the help of Train Concept Model tells of the command line.",
        {
            "Models": {"base": checkpoint()},
            "Pictures": {
                "pictures": Node("GCFGImageFolder", {"vae": ("base", 2), "folder": "pictures/faces", "resolution": 512,
                                                     "crop": "buckets", "flip": True, "resolutions": ""}),
                "about": Node("PreviewAny", {"source": ("pictures", 1)}, "What was found and skipped"),
            },
            "Training": {"train": training(preview_prompt=GLASSES)},
            "Conditions": {
                **prompts(), "size": size(),
                "place": Node("PreviewAny", {"source": ("train", 2)}, "Folder of the run"),
            },
            "Sampling": {"sampler": sampler(concept_model=("train", 0))},
            "Image": images("trained"),
        },
    ),
    Workflow(
        "Sample with the Trained Model",
        "**After training.** The trained model beside its base, and the same without it to compare.\n\n"
        "Load the base checkpoint, and the concept model from the run's folder (**output/concept_models**).\n\n"
        "More **concept_scale** is more of the pictures, more **control_scale** more of the prompt.",
        {
            "Models": {
                "base": checkpoint(),
                "concept": Node("GCFGLoadConceptModel", {"model": ("base", 0), "concept_name": RUN, "strength": 1.0}),
                "about": Node("PreviewAny", {"source": ("concept", 1)}, "What was loaded"),
            },
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {
                "sampler": sampler(concept_model=("concept", 0)),
                "plain": sampler(concept_scale=0.0, control_scale=7.5),
            },
            "Image": {
                **images("trained"),
                "decode_plain": Node("VAEDecode", {"samples": ("plain", 0), "vae": ("base", 2)}),
                "compare": Node("PreviewImage", {"images": ("decode_plain", 0)}, "The base alone"),
            },
        },
    ),
    Workflow(
        "Make a Concept Adapter",
        "**From a fine-tuned model to a small file.** Converts it to null text, cuts that to an adapter, saves it.\n\n"
        "Load the base checkpoint, and a fine-tuned UNet of it (**models/diffusion_models**).\n\n"
        "Extraction is lossy: read the report, compare the image, and raise **rank** if it falls short.",
        {
            "Models": {"base": checkpoint(), "tuned": unet(TUNED, "Fine-tuned model")},
            "Conditions": {**prompts(), "size": size()},
            "Null text": {
                "convert": Node("GCFGConvertToNullText", {"model": ("tuned", 0), "conditioning": ("null", 0),
                                                          "samples": 8, "seed": 0}),
                "residual": Node("PreviewAny", {"source": ("convert", 1)}, "How far it was from constant"),
            },
            "Adapter": {
                "extract": Node("GCFGExtractConceptAdapter", {
                    "base_model": ("base", 0), "concept_model": ("convert", 0), "rank": 64, "target_error": 0.0}),
                "keep": Node("GCFGSaveConceptModel", {"model": ("extract", 0), "dtype": "fp16", "format": "concept",
                                                      "filename_prefix": "concept_models/faces"}),
                "report": Node("PreviewAny", {"source": ("extract", 1)}, "What was lost"),
            },
            "Check": {"sampler": sampler(concept_model=("extract", 0))},
            "Image": images("adapter check"),
        },
    ),
]
