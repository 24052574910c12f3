"""``python -m benchmarks.pictures.measure``: the table of RESULTS.md.

For each method, prompts x seeds pictures; how many show the attribute that the prompt asks for, how many the judge
takes for the concept's style, and the Frechet distance (in the judge's 24 features) to the concept's pictures.
Sampled with the narrow shipped models, which compute what the wide ones compute in ComfyUI (``tests/pictures``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from gcfg.guidance import Recipe
from gcfg.miniature import recipes
from gcfg.miniature.metrics import frechet_distance, moments
from gcfg.nulltext.attention import replace_cross_attention
from gcfg.nulltext.formats.keymap import feature_blocks, feature_key

from . import data, labels, shipped
from .judge import ATTRIBUTES, STYLE_NAMES, Judge, attributes_of, trained
from .sampling import Denoiser, noise_of, sample
from .unet import UNet
from .vae import Autoencoder
from .words import Table, TextEncoder

PROMPTS = (
    ("sunglasses", "smiling face with sunglasses"), ("sunglasses", "wearing sunglasses"),
    ("crying", "loudly crying face"), ("crying", "crying"),
    ("hearts", "smiling face with heart-eyes"), ("halo", "smiling face with halo"),
    ("glasses", "nerd face"), ("hat", "cowboy hat face"),
    ("horns", "smiling face with horns"), ("mask", "face with medical mask"),
)
"""(attribute, prompt): labels of the training captions, and words of them in other company."""

SCALES = ((1, 2), (1, 3), (1.5, 1.5), (1.5, 2), (1.5, 3), (2, 2), (2.5, 2.5))
"""(concept_scale, control_scale)."""

CHOSEN = (1.5, 3.0)
"""The scales of the headline picture and of the test of the effect."""

SEEDS = 8
BATCH = 40


def methods() -> dict[str, Recipe]:
    lora = {"concept": "lora"}
    return {
        "base, cfg 2": recipes.base_cfg(2.0), "base, cfg 4": recipes.base_cfg(4.0),
        **{f"fine-tune with captions, cfg {scale}": recipes.tuned_cfg(scale) for scale in (1, 2, 4)},
        **{f"LoRA of one caption, cfg {scale}": recipes.tuned_cfg(scale).renamed({"tuned": "trigger_lora"})
           for scale in (2, 4)},
        "concept alone": recipes.concept_only(),
        **{f"GCFG {concept:g} / {control:g}": recipes.gcfg(concept, control)
           for concept, control in SCALES},
        **{f"GCFG {concept:g} / {control:g}, LoRA": recipes.gcfg(concept, control).renamed(lora)
           for concept, control in ((1, 3), (1.5, 2))},
        "GCFG 1.5 / 2, LoRA of one caption": recipes.gcfg(1.5, 2.0).renamed({"concept": "trigger_lora"}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--shipped", type=Path, default=shipped.MODELS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    judge, family = trained(settings.work), Narrow.load(settings.shipped)
    reference = References(judge, settings.work)
    rows = {"the concept's pictures, halves": reference.floor(),
            "glossy pictures with the attribute": reference.truth()}
    for row in rows.items():
        print(line(*row))
    for name, recipe in methods().items():
        rows[name] = measured(family, recipe, judge, reference, settings.seeds)
        print(line(name, rows[name]), flush=True)
    (settings.work / "measures.json").write_text(json.dumps(rows, indent=1), "utf-8")


class Narrow:
    """The shipped models at their narrow size: text, denoisers by name, pictures."""

    def __init__(self, text: TextEncoder, tokenize: Table, models: dict[str, Denoiser], vae: Autoencoder):
        self.text, self.tokenize, self.models, self.vae = text, tokenize, models, vae

    @classmethod
    def load(cls, folder: Path) -> Narrow:
        base = shipped.read("base", folder)
        words = shipped.part(base, "text.")
        text, vae = TextEncoder(words["tokens"]), Autoencoder()
        text.load_state_dict(words)
        vae.load_state_dict(shipped.part(base, "vae."))
        models = {name: network(shipped.unet(file, folder)) for name, file in
                  (("base", "base"), ("tuned", "fine_tune"), ("concept", "concept"))}
        for name in ("lora", "trigger_lora"):
            models[name] = network(low_rank(shipped.unet("base", folder), shipped.read(name, folder)))
        models = {name: Denoiser(unet) for name, unet in models.items()}
        return cls(text.requires_grad_(False), shipped.words(folder), models, vae.requires_grad_(False))

    def features(self, prompts: list[str]) -> Tensor:
        """(prompts, 77, 64)."""
        return self.text(self.text.rows_of(torch.tensor([self.tokenize(prompt) for prompt in prompts])))

    def pictures(self, recipe: Recipe, prompts: list[str], seeds: range) -> Tensor:
        """Pictures (prompts x seeds, 3, 64, 64), all seeds of a prompt together."""
        features = self.features(prompts).repeat_interleave(len(seeds), 0)
        noise = torch.cat([noise_of(seed) for seed in seeds]).repeat(len(prompts), 1, 1, 1)
        empty, done = self.features([""]), []
        for some, start in zip(features.split(BATCH), noise.split(BATCH), strict=True):
            texts = {recipes.CAPTION: some, "unconditional": empty}
            done.append(self.vae.decoder(sample(self.models, recipe, texts, start)).clamp(0, 1))
        return torch.cat(done)


def network(tensors: dict[str, Tensor]) -> UNet:
    """A narrow UNet, null-text if its weights are."""
    unet = UNet()
    if blocks := feature_blocks(tensors):
        replace_cross_attention(unet, {block: tensors[feature_key(block)] for block in blocks})
    unet.load_state_dict(tensors)
    return unet


def low_rank(base: dict[str, Tensor], pairs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The narrow UNet with the pairs merged into it and their features, if any, in place of its cross-attention."""
    features = {key: pairs[key] for key in map(feature_key, feature_blocks(pairs))}
    merged = {key: value for key, value in base.items() if not features or not (".attn2." in key or ".norm2." in key)}
    merged |= features
    for layer in (key.removesuffix("/up") for key in pairs if key.endswith("/up")):
        weight = merged[f"{layer}.weight"]
        merged[f"{layer}.weight"] = weight + (pairs[f"{layer}/up"] @ pairs[f"{layer}/down"].flatten(1)).view_as(weight)
    return merged


class References:
    """The concept's pictures and glossy ones with attributes, flipped ones too, as the judge sees them."""

    def __init__(self, judge: Judge, work: Path):
        pictures, self.rows = data.load(work)
        self.judge, self.pictures = judge, pictures
        concept = pictures[labels.concept(self.rows)]
        self.features = torch.cat([judge(concept)[0], judge(concept.flip(3))[0]])
        self.moments = moments(self.features)

    def floor(self) -> dict[str, float]:
        half = frechet_distance(moments(self.features[::2]), moments(self.features[1::2]))
        return {"distance": half}

    def truth(self) -> dict[str, float]:
        """Glossy faces that have one of the attributes: no model here has seen them."""
        index = [i for i, row in enumerate(self.rows) if row.style == labels.CONCEPT_STYLE and
                 row.subgroup.startswith("face-") and any(attributes_of(row))]
        shown = self.pictures[index]
        features, attributes, style = self.judge(torch.cat([shown, shown.flip(3)]))
        wanted = torch.tensor([attributes_of(self.rows[i]) for i in index]).bool().repeat(2, 1)
        return {"attribute": float((attributes > 0)[wanted].float().mean()), "style": glossy(style),
                "distance": frechet_distance(moments(features), self.moments)}


def measured(family: Narrow, recipe: Recipe, judge: Judge, reference: References, seeds: int) -> dict:
    pictures = family.pictures(recipe, [prompt for _, prompt in PROMPTS], range(seeds))
    features, attributes, style = judge(pictures)
    asked = torch.tensor([list(ATTRIBUTES).index(attribute) for attribute, _ in PROMPTS]).repeat_interleave(seeds)
    shown = (attributes.gather(1, asked[:, None])[:, 0] > 0).float().view(len(PROMPTS), seeds).mean(1)
    return {"attribute": float(shown.mean()), "style": glossy(style),
            "distance": frechet_distance(moments(features), reference.moments),
            "prompts": {prompt: float(share) for (_, prompt), share in zip(PROMPTS, shown, strict=True)}}


def glossy(style: Tensor) -> float:
    """The share that the judge takes for the concept's style."""
    return float((style.argmax(1) == STYLE_NAMES.index(labels.CONCEPT_STYLE)).float().mean())


def line(name: str, row: dict) -> str:
    """A line of the table."""
    share = [f"{row[key]:.2f}" if key in row else "" for key in ("attribute", "style")]
    return f"| {name} | {share[0]} | {share[1]} | {row['distance']:.1f} |"


if __name__ == "__main__":
    main()
