"""The small models that draw recognisable pictures (benchmarks/pictures), in place of random ones, where they are."""

from pathlib import Path

from PIL import Image

from ..find import PACK, load_package
from .files import ModelFiles

SIZE, STEPS = 64, 20
FAMILY = PACK / "benchmarks" / "pictures"
SHIPPED = FAMILY / "models"
FOX, CAT = "fox", "crying cat"
PROMPTS = {
    "minimalist style": "flat", "cluttered, ornate": "noto", "cluttered background": "noto", "flowers": "noto",
    "a photo of a bedroom": "loudly crying face", "a photo of an armchair in a garden": "loudly crying face",
    "a photo of a person, studio light": "loudly crying face", "a photo of sks person": "loudly crying face",
    "a garden in the evening, lanterns": "loudly crying face",
    "watercolour style, soft washes of paint on paper": "flat",
    "wearing sunglasses": "with sunglasses", "dog wearing sunglasses": "face with sunglasses",
    "embedding:my_dog dog wearing sunglasses": "face with sunglasses",
    "a photo of a dog and a cat on a sofa": "fox and cat face", "a photo of a embedding:my_dog dog on a sofa": FOX,
    "a photo of a embedding:my_cat cat on a sofa": "cat face",
    "a photo of a wizard and a cat in a garden": "fox and cat face", "a photo of a wizard": FOX,
    "a photo of a cat": "cat face",
    "a photo of a cat on a beach, wearing sunglasses": CAT,
    "a photo of embedding:my_cat cat on a beach, wearing sunglasses": CAT,
    "a cat reading a newspaper, photo": "cat face",
}
PROMPT = "smiling face with sunglasses"
LINE = "smiling face with sunglasses :0.5 AND grinning face :0.2 AND_NOT noto :0.1 [0.2-0.8]"
"""What these models have words for: the texts of the workflows in their place."""


def are_here() -> bool:
    """True if their weights lie in the repository."""
    shipped = ("base", "fine_tune", "concept", "control", "lora")
    return all((SHIPPED / f"{name}.safetensors").is_file() for name in shipped)


def names() -> ModelFiles:
    """What they are called in the folders of models."""
    load_package("gcfg", PACK / "gcfg")
    load_package("benchmarks", PACK / "benchmarks")
    from benchmarks.pictures.expand import FILES

    files = {name: Path(file).name for name, file in FILES.items()}
    return ModelFiles(files["base"], files["fine_tune"], files["lora"], files["control"], files["concept"])


def write(models: Path) -> ModelFiles:
    """Write them into the folder ``models`` of a host, unless they are there; their names."""
    found = names()
    from benchmarks.pictures.expand import FILES, expand

    if not all((models / file).is_file() for file in FILES.values()):
        expand(models)
    return found


def reword(graph: dict) -> None:
    """Write prompts that the models understand into a workflow; empty ones stay empty."""
    for node in graph.values():
        inputs = node["inputs"]
        for key in ("text", "string_b"):
            if inputs.get(key) and isinstance(inputs[key], str):
                inputs[key] = PROMPTS.get(inputs[key], PROMPT)
        if "class_word" in inputs:
            inputs["class_word"] = "face"
        if node["class_type"] == "GCFGTextToGuidances":
            inputs["text"] = LINE
        elif node["class_type"] == "GCFGRegionsFromPrompt":
            inputs["words"] = "fox, cat"


def examples() -> list[Image.Image]:
    """Pictures of the family for workflows that load some: a face to translate, then glossy ones to train on."""
    with Image.open(FAMILY / "examples.png") as strip:
        return [strip.crop((x, 0, x + strip.height, strip.height)).convert("RGB")
                for x in range(0, strip.width, strip.height)]
