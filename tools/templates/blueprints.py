"""The subgraph blueprints as data: what lies inside, what it is connected to, and which settings it shows."""

from typing import NamedTuple

from .parts import (
    GLASSES,
    LORA,
    OFFICIAL,
    Node,
    checkpoint,
    guidance,
    prompt,
    prompts,
    sampler,
    size,
    unconditional,
    unet,
)

SECOND_LORA = "style_lora.safetensors"
DECODE = {"decode": Node("VAEDecode", {"samples": ("sampler", 0), "vae": ("base", 2)})}


class Blueprint(NamedTuple):
    """A subgraph: nodes inside, nodes that stand for what it is connected to, and settings (node, widget) it shows."""

    title: str
    description: str
    inside: dict[str, Node]
    outside: dict[str, Node]
    shown: list[tuple[str, str]]


def lora(name: str, title: str) -> Node:
    return Node("LoraLoaderModelOnly", {"model": ("base", 0), "lora_name": name, "strength_model": 1.0}, title)


BLUEPRINTS = [
    Blueprint(
        "Concept and Control",
        "A base model follows the prompt, a concept model gives fidelity to its domain (GCFG, arXiv 2312.08195).",
        {**prompts(), "sampler": sampler(concept_model=("concept", 0)), **DECODE},
        {"base": checkpoint(), "concept": unet(), "size": size()},
        [("control", "text"), ("sampler", "concept_scale"), ("sampler", "control_scale"), ("sampler", "seed"),
         ("sampler", "steps")],
    ),
    Blueprint(
        "Two LoRAs",
        "Two LoRAs as guidances of their own, each with its own strength, over one copy of the base's weights.",
        {
            **prompts(),
            "first": lora(LORA, "First LoRA"), "second": lora(SECOND_LORA, "Second LoRA"),
            "one": guidance("First LoRA", 1.5, model=("first", 0)),
            "two": guidance("Second LoRA", 1.0, guidance=("one", 0), model=("second", 0)),
            "sampler": sampler(guidance=("two", 0)), **DECODE,
        },
        {"base": checkpoint(), "size": size()},
        [("control", "text"), ("first", "lora_name"), ("one", "scale"), ("second", "lora_name"), ("two", "scale"),
         ("sampler", "control_scale"), ("sampler", "seed")],
    ),
    Blueprint(
        "Class-guided Concept",
        "The prompt is measured from the concept's class, the concept across it: for what it has never seen.",
        {
            "control": prompt(GLASSES, "Control prompt"),
            "class": prompt("a photo of a person", "Class of the concept"),
            "null": unconditional(),
            "preset": Node("GCFGPreset", {
                "preset": "concept across control", "positive": ("control", 0), "conditioning_2": ("class", 0),
                "model_2": ("concept", 0), "scale": 2.5, "scale_2": 1.5, "weight": 0.0}),
            "sampler": Node("GCFGKSampler", {
                "model": ("base", 0), "positive": ("control", 0), "negative": ("null", 0), "latent_image": ("size", 0),
                "seed": 2312, "concept_scale": 0.0, "control_scale": 0.0, "denoise": 1.0, "guidance": ("preset", 0),
                **OFFICIAL}),
            **DECODE,
        },
        {"base": checkpoint(), "concept": unet(), "size": size()},
        [("control", "text"), ("class", "text"), ("preset", "scale"), ("preset", "scale_2"), ("sampler", "seed")],
    ),
]
