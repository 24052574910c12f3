"""Shipped workflows about subjects: one thing of a person's own, from a few pictures."""

from .parts import (
    ADAPTER,
    SECOND_SUBJECT,
    SUBJECT,
    Node,
    Workflow,
    checkpoint,
    class_guided,
    guidance,
    images,
    lora,
    prompt,
    sampler,
    size,
    subject_images,
    subject_training,
)

SUBJECTS = [
    Workflow(
        "Your Own Subject",
        "**One thing of your own that still listens.** A word and weights from 3 to 5 pictures.\n\n"
        "Load a base checkpoint, and name the **folder** of your pictures, the **name** and the **class_word**.\n\n"
        "The class leads, the subject adds what is its own: **scale_2** from 0 (any dog) to **scale** (your dog).",
        {
            "Models": {"base": checkpoint()},
            "Pictures": {
                "pictures": subject_images(),
                "about": Node("PreviewAny", {"source": ("pictures", 1)}, "What was found"),
            },
            "Training": {"train": subject_training()},
            "Conditions": {
                "request": Node("StringConcatenate", {"string_a": ("train", 1), "string_b": "wearing sunglasses",
                                                      "delimiter": " "}, "The subject, and what it shall do"),
                "named": Node("CLIPTextEncode", {"text": ("request", 0), "clip": ("base", 1)}, "With the subject"),
                "class": prompt("dog wearing sunglasses", "The same with the class alone"),
                "null": prompt("", "Unconditional (empty prompt)"),
                "size": size(),
            },
            "Guidance": {"preset": class_guided(model_2=("train", 0))},
            "Sampling": {"sampler": sampler(positive=("class", 0), concept_scale=0.0, control_scale=0.0,
                                            guidance=("preset", 0))},
            "Image": images("subject"),
        },
    ),
    Workflow(
        "Your Own Subject with a Concept Model",
        "**Your dog, in the concept's domain, as the prompt says.** Three guidances, one copy of the weights.\n\n"
        "Load a base checkpoint, your subject's LoRA (**models/loras**) and a concept adapter made from the base.\n\n"
        "The prompts name the subject and its class; **concept_scale** is how much of the domain.",
        {
            "Models": {
                "base": checkpoint(),
                "subject": lora(SUBJECT, "Your subject"),
                "concept": Node("GCFGLoadConceptModel", {"model": ("base", 0), "concept_name": ADAPTER,
                                                         "strength": 1.0}),
            },
            "Conditions": {
                "named": prompt("embedding:my_dog dog wearing sunglasses", "With the subject"),
                "class": prompt("dog wearing sunglasses", "The same with the class alone"),
                "null": prompt("", "Unconditional (empty prompt)"),
                "size": size(),
            },
            "Guidance": {"preset": class_guided(model_2=("subject", 0))},
            "Sampling": {"sampler": sampler(positive=("class", 0), concept_model=("concept", 0), concept_scale=1.5,
                                            control_scale=0.0, guidance=("preset", 0))},
            "Image": images("subject and concept"),
        },
    ),
    Workflow(
        "Two Subjects",
        "**Two of your own in one picture, each itself.** Every subject is a guidance, where its mask is.\n\n"
        "Load a base checkpoint and two subjects' LoRAs (**models/loras**), and name their words in the prompts.\n\n"
        "The base places both (to **end_percent** 0.3), then each draws its own side. What they share, \"on a sofa\", "
        "stands in every prompt.",
        {
            "Models": {
                "base": checkpoint(),
                "first": lora(SUBJECT, "First subject"),
                "second": lora(SECOND_SUBJECT, "Second subject"),
            },
            "Conditions": {
                "whole": prompt("a photo of a dog and a cat on a sofa", "The whole picture"),
                "dog": prompt("a photo of a embedding:my_dog dog on a sofa", "First subject's word"),
                "cat": prompt("a photo of a embedding:my_cat cat on a sofa", "Second subject's word"),
                "null": prompt("", "Unconditional (empty prompt)"),
                "size": size(),
            },
            "Places": {
                "everywhere": Node("SolidMask", {"value": 0.0, "width": 512, "height": 512}, "Nowhere"),
                "half": Node("SolidMask", {"value": 1.0, "width": 256, "height": 512}, "One half"),
                "left": Node("MaskComposite", {"destination": ("everywhere", 0), "source": ("half", 0), "x": 0, "y": 0,
                                               "operation": "add"}, "Left half"),
                "right": Node("InvertMask", {"mask": ("left", 0)}, "Right half"),
            },
            "Guidances": {
                "both": guidance("The base places both", 7.5, conditioning=("whole", 0), end_percent=0.3),
                "itself": guidance("First subject", 4.0, guidance=("both", 0), model=("first", 0),
                                   conditioning=("dog", 0), mask=("left", 0), start_percent=0.3),
                "other": guidance("Second subject", 4.0, guidance=("itself", 0), model=("second", 0),
                                  conditioning=("cat", 0), mask=("right", 0), start_percent=0.3),
            },
            "Sampling": {"sampler": sampler(positive=("whole", 0), concept_scale=0.0, control_scale=0.0,
                                            guidance=("other", 0))},
            "Image": images("two subjects"),
        },
    ),
]
