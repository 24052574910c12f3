"""The small models that draw recognisable pictures (benchmarks/pictures), in place of random ones, where they are."""

from pathlib import Path

from ..find import PACK, load_package
from .files import ModelFiles

SIZE, STEPS = 64, 20
SHIPPED = PACK / "benchmarks" / "pictures" / "models"
PROMPTS = {"minimalist style": "flat", "cluttered, ornate": "noto", "cluttered background": "noto", "flowers": "noto",
           "a photo of a bedroom": "loudly crying face", "a photo of an armchair in a garden": "cat face",
           "watercolour style, soft washes of paint on paper": "smiling face with halo noto",
           "a portrait photo": "loudly crying face"}
PROMPT = "smiling face with sunglasses"
LINE = "smiling face with sunglasses AND loudly crying face :0.5 AND_NOT noto :0.2 [0.2-0.8]"
"""What these models have words for: the texts of the workflows in their place."""


def are_here() -> bool:
    """True if their weights lie in the repository."""
    return all((SHIPPED / f"{name}.safetensors").is_file() for name in ("base", "fine_tune", "concept", "lora"))


def write(models: Path) -> ModelFiles:
    """Write them into the folder ``models`` of a host, unless they are there; their names."""
    load_package("gcfg", PACK / "gcfg")
    load_package("benchmarks", PACK / "benchmarks")
    from benchmarks.pictures.expand import FILES, expand

    if not all((models / file).is_file() for file in FILES.values()):
        expand(models)
    names = {name: Path(file).name for name, file in FILES.items()}
    return ModelFiles(names["base"], names["fine_tune"], names["lora"], "", names["concept"])


def reword(graph: dict) -> None:
    """Write prompts that the models understand into a workflow; empty ones stay empty."""
    for node in graph.values():
        if node["class_type"] == "CLIPTextEncode" and isinstance(node["inputs"].get("text"), str):
            if words := node["inputs"]["text"]:
                node["inputs"]["text"] = PROMPTS.get(words, PROMPT)
        elif node["class_type"] == "GCFGTextToGuidances":
            node["inputs"]["text"] = LINE
