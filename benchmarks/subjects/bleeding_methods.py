"""The ways to put two LoRAs into one picture that ``bleeding`` compares, each by the nodes that a person uses.

``World.<method>(pair, seed)`` is the latent of a picture of 128 x 64 with the first character left, the second right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from ..pictures import host
from ..pictures.expand import CHARACTER_FILES, FILES
from ..pictures.labels import CHARACTERS, Character

SCALE = 4.0
"""Of classifier-free guidance by the stock KSampler, and of the prompt of both."""
DOMAIN, SHARE = 2.0, 2.4
"""Of a character measured from the base's unconditional, which takes less than from its own; from the prompt of both,
0.6 of that one's scale as in the workflow Two LoRAs."""
CLASS, EXTRA = 3.0, 2.5
"""Class-guided: of the class, and of the character measured from it. All were chosen on pictures of one character."""
BEGIN = 0.3
"""The part of the sampling that the base has for itself, where it places the heads; chosen on pairs of ``choice``."""
WIDTH, STEPS = 2 * host.SIZE, 12
Pair = tuple[str, str]


@dataclass(frozen=True)
class Setting:
    """How masked guidances put two characters into a picture.

    Args:
        feather: of the masks, pixels.
        begin: the part of the sampling that belongs to the base under the prompt of both, before the characters act.
        scale: of each character.
        whole: the prompt of both leads to the end, and each character is measured from it; from the base's
            unconditional without.
    """

    feather: float = 0.0
    begin: float = 0.0
    scale: float = DOMAIN
    whole: bool = False


def half(side: int) -> Tensor:
    """The MASK (1, 64, 128) of the left (0) or the right (1) half."""
    mask = torch.zeros(1, host.SIZE, WIDTH)
    mask[:, :, side * host.SIZE:(side + 1) * host.SIZE] = 1.0
    return mask


@dataclass
class World:
    """MODEL, CLIP and VAE of ComfyUI; the characters' LoRAs lie where it looks for LoRAs."""

    model: object
    clip: object
    vae: object

    @classmethod
    def load(cls, folder: Path) -> World:
        """From a folder laid out as ComfyUI's ``models``, by the nodes that a person uses."""
        import folder_paths
        import nodes

        for kind in ("checkpoints", "loras"):
            folder_paths.add_model_folder_path(kind, str((folder / kind).resolve()), is_default=True)
        return cls(*nodes.CheckpointLoaderSimple().load_checkpoint(Path(FILES["base"]).name))

    @cached_property
    def tuned(self) -> dict[str, object]:
        """The base with each character's LoRA."""
        return {name: self._with(self.model, name) for name in CHARACTERS}

    def picture(self, latent: dict) -> Tensor:
        """(64, W, 3)."""
        import nodes

        return nodes.VAEDecode().decode(self.vae, latent)[0][0].cpu()

    def alone(self, name: str, seed: int) -> dict:
        """A character by its own LoRA, one to a picture: what identity is measured from."""
        return self._stock(self.tuned[name], self.text(CHARACTERS[name].label), self.text(""), seed, host.SIZE)

    def base(self, pair: Pair, seed: int) -> dict:
        """The base under the prompt of both, without a LoRA: what cost is measured from."""
        return self._stock(self.model, self.whole(pair), self.text(""), seed)

    def merged(self, pair: Pair, seed: int) -> dict:
        """Both LoRAs on one MODEL, one prompt."""
        return self._stock(self._both(pair), self.whole(pair), self.text(""), seed)

    def hooks(self, pair: Pair, seed: int, begin: float = 0.0) -> dict:
        """The core's nodes: Create Hook LoRA, Cond Pair Set Props with a mask, combined.

        Args:
            begin: as of ``Setting``, by Timesteps Range.
        """
        from comfy_extras.nodes_hooks import CreateHookLora, PairConditioningCombine, PairConditioningSetProperties

        sides = [PairConditioningSetProperties().set_properties(
            self.text(CHARACTERS[name].label), self.text(""), 1.0, "default", mask=half(side),
            hooks=CreateHookLora().create_hook(Path(CHARACTER_FILES[name]).name, 1.0, 0.0)[0],
            timesteps=(begin, 1.0) if begin else None) for side, name in enumerate(pair)]
        positive, negative = PairConditioningCombine().combine(*sides[0], *sides[1])
        if begin:
            before = PairConditioningSetProperties().set_properties(
                self.whole(pair), self.text(""), 1.0, "default", timesteps=(0.0, begin))
            positive, negative = PairConditioningCombine().combine(positive, negative, *before)
        return self._stock(self.model, positive, negative, seed)

    def coupled(self, pair: Pair, seed: int) -> dict:
        """Both LoRAs on one MODEL, the prompt of each on its side of the cross-attention (attention couple)."""
        texts = [self.text(CHARACTERS[name].label)[0][0] for name in pair]
        model = coupled_attention(self._both(pair), texts, [half(side) for side in (0, 1)])
        return self._stock(model, self.text(CHARACTERS[pair[0]].label), self.text(""), seed)

    def masked(self, pair: Pair, seed: int, setting: Setting = Setting()) -> dict:
        """Ours: a guidance for each character, with its mask; before it the base may place two heads."""
        from gcfg_pack.nodes.attention import GCFGBlendMasks

        whole, links, reference = self.whole(pair), (), {}
        if setting.whole:
            reference = {"reference": "custom", "reference_conditioning": whole}
        elif setting.begin:
            links = _guidance(links, SCALE, end=setting.begin, conditioning=whole)
        masks = GCFGBlendMasks.execute(half(0), half(1), setting.feather).result
        for mask, name in zip(masks, pair, strict=False):
            links = _guidance(links, setting.scale, setting.begin, model=self.tuned[name], mask=mask,
                              conditioning=self.text(CHARACTERS[name].label), **reference)
        return self._guided(links, whole if setting.whole else None, seed)

    def class_guided(self, pair: Pair, seed: int) -> dict:
        """Ours, class-guided: the base draws the class on each side, the character adds what differs from it."""
        links: tuple = ()
        for side, name in enumerate(pair):
            word = self.text(CHARACTERS[name].label)
            links = _guidance(links, CLASS, conditioning=word, mask=half(side))
            links = _guidance(links, EXTRA, model=self.tuned[name], conditioning=word, mask=half(side),
                              reference="custom", reference_conditioning=word)
        return self._guided(links, None, seed)

    def whole(self, pair: Pair) -> list:
        return self.text(" and ".join(CHARACTERS[name].label for name in pair))

    def text(self, prompt: str) -> list:
        import nodes

        return nodes.CLIPTextEncode().encode(self.clip, prompt)[0]

    def _guided(self, links: tuple, positive: list | None, seed: int) -> dict:
        from gcfg_pack.nodes.sampling import GCFGKSampler

        null = self.text("")
        return GCFGKSampler.execute(self.model, positive or null, null, _empty(WIDTH), seed, STEPS, 0.0,
                                    SCALE if positive else 0.0, host.SAMPLER, host.SCHEDULER, 1.0,
                                    guidance=links).result[0]

    def _stock(self, model, positive: list, negative: list, seed: int, width: int = WIDTH) -> dict:
        import nodes

        return nodes.KSampler().sample(model, seed, STEPS, SCALE, host.SAMPLER, host.SCHEDULER, positive,
                                       negative, _empty(width))[0]

    def _both(self, pair: Pair):
        return self._with(self.tuned[pair[0]], pair[1])

    @staticmethod
    def _with(model, name: str):
        import nodes

        return nodes.LoraLoaderModelOnly().load_lora_model_only(model, Path(CHARACTER_FILES[name]).name, 1.0)[0]


METHODS: dict[str, Callable[[World, Pair, int], dict]] = {
    "merged LoRAs": World.merged, "core's hooks, masks": World.hooks, "attention-coupled prompts": World.coupled,
    "core's hooks, the base first": partial(World.hooks, begin=BEGIN),
    "ours": World.masked, "ours, soft masks": partial(World.masked, setting=Setting(feather=16.0)),
    "ours, the base first": partial(World.masked, setting=Setting(begin=BEGIN)),
    "ours, from the whole": partial(World.masked, setting=Setting(scale=SHARE, whole=True)),
    "ours, class-guided": World.class_guided}


def coupled_attention(model, texts: list[Tensor], masks: list[Tensor]):
    """A MODEL whose conditional rows attend to the text of their region: queries once for each, outputs by mask.

    Args:
        texts: features (1, 77, C) of each region.
        masks: (1, H, W), that sum to 1.
    """
    def conditional(rows: Tensor, options: dict) -> list[tuple[bool, Tensor]]:
        kinds = options["cond_or_uncond"]
        return [(kind == 0, part) for kind, part in zip(kinds, rows.chunk(len(kinds)), strict=True)]

    def inputs(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        queries, contexts = [], []
        for (own, part), given in zip(conditional(n, options), context.chunk(len(options["cond_or_uncond"])),
                                      strict=True):
            queries += [part] * (len(texts) if own else 1)
            contexts += [text.to(given).expand_as(given) for text in texts] if own else [given]
        wide = torch.cat(contexts)
        return torch.cat(queries), wide, wide

    def outputs(n: Tensor, options: dict) -> Tensor:
        kinds, height, width = options["cond_or_uncond"], *options["original_shape"][-2:]
        parts = list(n.chunk(sum(len(texts) if kind == 0 else 1 for kind in kinds)))
        cells = [torch.nn.functional.interpolate(mask[:, None], (height, width)).flatten(2).transpose(1, 2)
                 for mask in masks]
        return torch.cat([sum(cell.to(n) * parts.pop(0) for cell in cells) if kind == 0 else parts.pop(0)
                          for kind in kinds])

    clone = model.clone()
    clone.set_model_attn2_patch(inputs)
    clone.set_model_attn2_output_patch(outputs)
    return clone


def _guidance(links: tuple, scale: float, begin: float = 0.0, end: float = 1.0, reference: str = "unconditional",
              **sockets) -> tuple:
    from gcfg_pack.nodes.guidance import GCFGGuidance

    return GCFGGuidance.execute(scale, begin, end, reference, guidance=links, **sockets).result[0]


def _empty(width: int) -> dict:
    return {"samples": torch.zeros(1, 4, host.SIZE // 8, width // 8)}


def label(name: str) -> str:
    """"green fox" of "green_fox"."""
    return name.replace("_", " ")


__all__ = ["METHODS", "Character", "Pair", "World", "coupled_attention", "half", "label"]
