"""Names, shapes and weights of UNets, listed from their configuration independently of the code under test."""

import pytest
import torch

SD15 = {"width": 320, "mult": [1, 2, 4, 4], "res": 2, "down": [1, 1, 1, 1, 1, 1, 0, 0], "mid": 1,
        "up": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context": 768, "adm": None, "linear": False}
SDXL = {"width": 320, "mult": [1, 2, 4], "res": 2, "down": [0, 0, 2, 2, 10, 10], "mid": 10,
        "up": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context": 2048, "adm": 2816, "linear": True}
TINY = {"width": 8, "mult": [1, 2], "res": 1, "down": [1, 0], "mid": 1, "up": [1, 1, 0, 0], "context": 6, "adm": None,
        "linear": False}
KOALA = {"width": 8, "mult": [1, 1, 1], "res": 1, "down": [0, 2, 5], "mid": None, "up": [0, 0, 2, 2, 5, 5],
         "context": 6, "adm": 4, "linear": True}


def unet_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes in ComfyUI's numbering."""
    shapes, embed = {}, 4 * config["width"]

    def add(name, *weight, bias=True):
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def resnet(name, inner, outer):
        add(f"{name}.in_layers.0", inner)
        add(f"{name}.in_layers.2", outer, inner, 3, 3)
        add(f"{name}.emb_layers.1", outer, embed)
        add(f"{name}.out_layers.0", outer)
        add(f"{name}.out_layers.3", outer, outer, 3, 3)
        if inner != outer:
            add(f"{name}.skip_connection", outer, inner, 1, 1)

    def attention(name, width, depth):
        kernel = () if config["linear"] else (1, 1)
        add(f"{name}.norm", width)
        add(f"{name}.proj_in", width, width, *kernel)
        add(f"{name}.proj_out", width, width, *kernel)
        for i in range(depth):
            block = f"{name}.transformer_blocks.{i}"
            for norm in ("norm1", "norm2", "norm3"):
                add(f"{block}.{norm}", width)
            for attn, source in (("attn1", width), ("attn2", config["context"])):
                add(f"{block}.{attn}.to_q", width, width, bias=False)
                add(f"{block}.{attn}.to_k", width, source, bias=False)
                add(f"{block}.{attn}.to_v", width, source, bias=False)
                add(f"{block}.{attn}.to_out.0", width, width)
            add(f"{block}.ff.net.0.proj", 8 * width, width)
            add(f"{block}.ff.net.2", width, 4 * width)

    add("time_embed.0", embed, config["width"])
    add("time_embed.2", embed, embed)
    if config["adm"]:
        add("label_emb.0.0", embed, config["adm"])
        add("label_emb.0.2", embed, embed)
    add("input_blocks.0.0", config["width"], 4, 3, 3)
    channels, width, number, depths = [config["width"]], config["width"], 1, iter(config["down"])
    for level, mult in enumerate(config["mult"]):
        for _ in range(config["res"]):
            resnet(f"input_blocks.{number}.0", width, mult * config["width"])
            width = mult * config["width"]
            if depth := next(depths):
                attention(f"input_blocks.{number}.1", width, depth)
            channels.append(width)
            number += 1
        if level < len(config["mult"]) - 1:
            add(f"input_blocks.{number}.0.op", width, width, 3, 3)
            channels.append(width)
            number += 1
    if config["mid"] is not None:
        resnet("middle_block.0", width, width)
        attention("middle_block.1", width, config["mid"])
        resnet("middle_block.2", width, width)
    number, depths = 0, iter(reversed(config["up"]))
    for level, mult in reversed(list(enumerate(config["mult"]))):
        for i in range(config["res"] + 1):
            resnet(f"output_blocks.{number}.0", width + channels.pop(), mult * config["width"])
            width, layer = mult * config["width"], 1
            if depth := next(depths):
                attention(f"output_blocks.{number}.1", width, depth)
                layer = 2
            if level and i == config["res"]:
                add(f"output_blocks.{number}.{layer}.conv", width, width, 3, 3)
            number += 1
    add("out.0", width)
    add("out.2", 4, width, 3, 3)
    return shapes


def random_weights(shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {key: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for key, shape in shapes.items()}


@pytest.fixture(scope="session")
def configs():
    return {"SD15": SD15, "SDXL": SDXL, "tiny": TINY, "KOALA": KOALA}


@pytest.fixture(scope="session")
def shapes_of():
    return unet_shapes


@pytest.fixture(scope="session")
def weights_of():
    return random_weights


@pytest.fixture(scope="session")
def base_shapes():
    """Names and shapes of a tiny UNet with its cross-attention."""
    return unet_shapes(TINY)


@pytest.fixture
def base_weights(base_shapes):
    return random_weights(base_shapes, seed=1)
