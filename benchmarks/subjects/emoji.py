"""``python -m benchmarks.subjects.emoji``: a character of one's own, from four pictures, wearing sunglasses.

On the small genuine SD1.5 base that composes (``benchmarks.pictures.train_composed``) in a real ComfyUI, with Train
Subject and the preset class-guided as a person uses them. Prints the table of EMOJI.md and writes emoji.jpg beside this
file. One core, minutes; a run of training that is on disk goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.pictures import data, host, train_composed

from . import looks
from .characters import MIP, SIZE, ZOG, Character, draw

HERE = Path(__file__).parent
CHARACTERS = {who.name: who for who in (ZOG, MIP)}
CAPTION, CLASS, REQUEST = "a photo of a", "face", "with sunglasses"
SEEDS, SHOWN, SCALE, SUBJECT_SCALES = 6, 6, 4.0, (2.0, 3.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.subjects.emoji", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="that of train_composed, unless named")
    parser.add_argument("--pictures", type=Path, default=data.WORK, help="the work folder of benchmarks.pictures")
    parser.add_argument("--comfyui", default="")
    parser.add_argument("--work", type=Path, default=HERE / "cache" / "emoji")
    parser.add_argument("--out", type=Path, default=HERE / "emoji.jpg")
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--method", default="LoRA")
    parser.add_argument("--weight", type=float, default=0.5, help="semantic weight")
    parser.add_argument("--character", choices=list(CHARACTERS), default=ZOG.name)
    parser.add_argument("--training-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1, help="of the pictures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    host.start(chosen.comfyui)
    who = CHARACTERS[chosen.character]
    rows = drawn(trained(chosen, who), who, draw(who, chosen.work / "pictures"), chosen.seed)
    sheet(rows).save(chosen.out, quality=90)
    print(f"{table(rows, who, looks.trained(chosen.pictures))}\n{chosen.out} written")


def trained(chosen: argparse.Namespace, who: Character) -> tuple:
    """Base MODEL, CLIP, VAE, the subject's MODEL and its prompt; the run goes on where it was."""
    from gcfg_pack.gcfg.host.training import command_line
    from gcfg_pack.gcfg.host.training.subjects import train as subject
    from gcfg_pack.gcfg.training.data.variants import Subject
    from gcfg_pack.gcfg.training.subject_settings import SubjectSettings

    work = chosen.work.resolve()
    command_line.write_into(str(work / "models"))
    checkpoint = chosen.checkpoint or train_composed.checkpoint_path(chosen.pictures)
    base, clip, vae = command_line.load(str(checkpoint))
    folder = str(draw(who, work / "pictures"))
    pictures = subject.prepare(Subject(folder, "", SIZE, augment=False, flip=True, count=16), vae,
                               work / "latents")
    settings = SubjectSettings(
        run_name=who.name, seed=chosen.training_seed, class_word=CLASS, target_steps=chosen.steps,
        method=chosen.method, batch=4, learning_rate=chosen.rate, semantic_weight=chosen.weight, rank=chosen.rank,
        micro_batch=4, save_every=20, preview_every=0, output=str(work), initial_word=CLASS)
    watch = command_line.TerminalWatch(argparse.Namespace(asked=False), command_line_bar)
    with torch.inference_mode():
        made = subject.train(base, clip, pictures, settings, watch)
    return base, clip, vae, made.model, made.prompt


def command_line_bar(title: str):
    from gcfg.terminal import ProgressBar

    return ProgressBar(title)


def drawn(models: tuple, who: Character, pictures: Path, seed: int) -> dict[str, list[np.ndarray]]:
    """Rows of pictures by title: those of the folder; the base; the subject alone, asked by CFG, and class-guided."""
    base, clip, vae, subject, prompt = models
    alone = f"{CAPTION} {prompt}"
    plain, named, described = f"{CLASS} {REQUEST}", f"{alone} {REQUEST}", f"{who.described} {REQUEST}"
    rows = {"four pictures": [np.asarray(Image.open(file).resize((SIZE, SIZE))) for file in
                              sorted(pictures.glob("*"))],
            f"base: {plain}": sampled(base, clip, vae, seed, plain),
            f"base: {described}": sampled(base, clip, vae, seed, described),
            f"subject: {alone}": sampled(subject, clip, vae, seed, alone),
            f"subject by CFG: ... {REQUEST}": sampled(subject, clip, vae, seed, named)}
    return rows | {f"class-guided, subject scale {r:g}": sampled(base, clip, vae, seed, named, (plain, subject, r))
                   for r in SUBJECT_SCALES}


def sheet(rows: dict[str, list[np.ndarray]]) -> Image.Image:
    """The first pictures of each row."""
    label = 18
    canvas = Image.new("RGB", (2 * SIZE * SHOWN, len(rows) * (2 * SIZE + label)), "white")
    for k, (title, row) in enumerate(rows.items()):
        top = k * (2 * SIZE + label)
        ImageDraw.Draw(canvas).text((4, top + 3), title, fill="black")
        for j, pixels in enumerate(row[:SHOWN]):
            tile = Image.fromarray(pixels).resize((2 * SIZE, 2 * SIZE), Image.Resampling.LANCZOS)
            canvas.paste(tile, (2 * SIZE * j, top + label))
    return canvas


def table(rows: dict[str, list[np.ndarray]], who: Character, eye: looks.Looks) -> str:
    """The part of each row's pictures in which the eye finds sunglasses, the character, and both."""
    lines = ["| | sunglasses | the character | both |", "|---|---|---|---|"]
    for title, row in rows.items():
        pixels = torch.from_numpy(np.stack(row)).movedim(3, 1).float() / 255
        shares = (eye.share(pixels, worn="sunglasses"), eye.share(pixels, **who.looks),
                  eye.share(pixels, worn="sunglasses", **who.looks))
        lines.append(f"| {title} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return "\n".join(lines)


def sampled(model, clip, vae, seed: int, prompt: str, guided: tuple | None = None) -> list[np.ndarray]:
    """Pictures of a prompt by CFG, or class-guided with (class prompt, subject's MODEL, subject scale)."""
    import nodes

    from gcfg_pack.gcfg.host.recipes.methods import Sockets, chain_for
    from gcfg_pack.gcfg.host.sampling.patch import apply

    with torch.inference_mode():
        positive, empty = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (prompt, ""))
        cfg = SCALE
        if guided:
            class_prompt, subject, scale = guided
            of_class = nodes.CLIPTextEncode().encode(clip, class_prompt)[0]
            chain = chain_for("class-guided", Sockets(positive, of_class, model_2=subject, scale=SCALE, scale_2=scale))
            model, positive, cfg = apply(model, chain), empty, 1.0
        latent = {"samples": torch.zeros(SEEDS, 4, SIZE // 8, SIZE // 8)}
        samples = nodes.KSampler().sample(model, seed, host.STEPS, cfg, host.SAMPLER, host.SCHEDULER, positive, empty,
                                          latent)[0]["samples"]
        return list((vae.decode(samples)[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).numpy())


if __name__ == "__main__":
    main()
