"""Files of every kind of patch that the host's LoRA loaders read, for two layers of ``tiny.sd15``.

Import it only where the host is on ``sys.path``.
"""

import comfy.sd
import torch

LINEAR = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
CONV = "diffusion_model.input_blocks.1.0.in_layers.2"
NORM = "diffusion_model.middle_block.1.transformer_blocks.0.norm1"


class File:
    """Draws the tensors of a LoRA file for two layers of a tiny model, linear and convolution, 32 channels."""

    def __init__(self, seed=3):
        self.gen = torch.Generator().manual_seed(seed)

    def draw(self, *shape, scale=0.3):
        return torch.randn(shape, generator=self.gen) * scale

    def lora(self, rank=4):
        return {f"{LINEAR}.lora_up.weight": self.draw(32, rank), f"{LINEAR}.lora_down.weight": self.draw(rank, 32),
                f"{LINEAR}.alpha": torch.tensor(2.0), f"{CONV}.lora_up.weight": self.draw(32, rank, 1, 1, scale=0.1),
                f"{CONV}.lora_down.weight": self.draw(rank, 32, 3, 3, scale=0.1)}

    def locon_mid(self):
        return {f"{CONV}.lora_up.weight": self.draw(32, 4, 1, 1), f"{CONV}.lora_down.weight": self.draw(4, 32, 1, 1),
                f"{CONV}.lora_mid.weight": self.draw(4, 4, 3, 3, scale=0.1), f"{CONV}.alpha": torch.tensor(2.0)}

    def loha(self, rank=2):
        file = {f"{LINEAR}.alpha": torch.tensor(float(rank)), f"{CONV}.alpha": torch.tensor(1.0)}
        for layer, width in ((LINEAR, 32), (CONV, 288)):
            for k in (1, 2):
                file |= {f"{layer}.hada_w{k}_a": self.draw(32, rank), f"{layer}.hada_w{k}_b": self.draw(rank, width)}
        return file

    def loha_tucker(self):
        file = {}
        for k in (1, 2):
            file |= {f"{CONV}.hada_w{k}_a": self.draw(2, 32), f"{CONV}.hada_w{k}_b": self.draw(2, 32),
                     f"{CONV}.hada_t{k}": self.draw(2, 2, 3, 3)}
        return file

    def lokr(self):
        return {f"{LINEAR}.lokr_w1": self.draw(4, 2), f"{LINEAR}.lokr_w2_a": self.draw(8, 3),
                f"{LINEAR}.lokr_w2_b": self.draw(3, 16), f"{LINEAR}.alpha": torch.tensor(2.0),
                f"{CONV}.lokr_w1": self.draw(4, 4), f"{CONV}.lokr_w2": self.draw(8, 8, 3, 3, scale=0.1)}

    def glora(self):
        return {f"{LINEAR}.a1.weight": self.draw(32, 3), f"{LINEAR}.a2.weight": self.draw(3, 32),
                f"{LINEAR}.b1.weight": self.draw(32, 3), f"{LINEAR}.b2.weight": self.draw(3, 32),
                f"{CONV}.a1.weight": self.draw(32, 3), f"{CONV}.a2.weight": self.draw(3, 32),
                f"{CONV}.b1.weight": self.draw(32, 3), f"{CONV}.b2.weight": self.draw(3, 288, scale=0.1),
                f"{LINEAR}.alpha": torch.tensor(2.0)}

    def glora_square(self):
        return {f"{LINEAR}.{name}.weight": self.draw(32, 32, scale=0.1) for name in ("a1", "a2", "b1", "b2")}

    def oft(self):
        return {f"{LINEAR}.oft_blocks": self.draw(4, 8, 8), f"{CONV}.oft_blocks": self.draw(8, 4, 4)}

    def boft(self):
        return {f"{layer}.{name}": value for layer in (LINEAR, CONV) for name, value in (
            ("oft_blocks", self.draw(2, 8, 4, 4)), ("alpha", torch.tensor(0.8)),
            ("rescale", 1.0 + self.draw(32, *(1,) * (1 if layer == LINEAR else 3))))}

    def dora(self):
        return self.lora() | {f"{LINEAR}.dora_scale": 1.0 + self.draw(32, 1),
                              f"{CONV}.dora_scale": 1.0 + self.draw(32, 1, 1, 1)}

    def dora_by_input(self):
        return self.lora() | {f"{LINEAR}.dora_scale": 1.0 + self.draw(1, 32),
                              f"{CONV}.dora_scale": 1.0 + self.draw(1, 32, 1, 1)}

    def dora_on_loha(self):
        return self.loha() | {f"{LINEAR}.dora_scale": 1.0 + self.draw(32, 1)}

    def diff(self):
        return {f"{LINEAR}.diff": self.draw(32, 32), f"{CONV}.diff": self.draw(32, 32, 3, 3),
                f"{CONV}.diff_b": self.draw(32), f"{NORM}.w_norm": self.draw(32), f"{NORM}.b_norm": self.draw(32)}

    def set(self):
        return {f"{LINEAR}.set_weight": self.draw(32, 32), f"{CONV}.set_weight": self.draw(1, 1, 1, 1)}


FILES = [name for name in vars(File) if not name.startswith("_") and name != "draw"]


def loaded(model, kind, strength=0.7):
    """By the ordinary LoRA loader."""
    return comfy.sd.load_lora_for_models(model, None, getattr(File(), kind)(), strength, 0.0)[0]


def injected(model, kind, strength=0.7):
    """By the bypass loader."""
    return comfy.sd.load_bypass_lora_for_models(model, None, getattr(File(), kind)(), strength, 0.0)[0]
