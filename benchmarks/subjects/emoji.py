"""``python -m benchmarks.subjects.emoji CHECKPOINT``: a character of one's own, from four pictures, wearing sunglasses.

On the small genuine SD1.5 model of ``benchmarks/pictures`` in a real ComfyUI, with Train Subject and the preset
class-guided as a person uses them. Writes emoji.jpg beside this file. One core, minutes; what is on disk is not made
again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.pictures import host
from benchmarks.pictures.judge import ATTRIBUTES, read

HERE = Path(__file__).parent
SIZE, LARGE = 64, 256
CAPTION, CLASS, REQUEST = "a photo of a", "face", "with sunglasses"
"""As in training: this text encoder minds the place of a word."""
SEEDS, SHOWN, SCALE, SUBJECT_SCALES = 6, 4, 4.0, (2.0, 2.5, 3.0, 4.0)


def character(mouth: str, tilt: float, scale: float) -> Image.Image:
    """Zog: a round blue head, two antennae with red ends, one of four moods."""
    head = Image.new("RGBA", (LARGE, LARGE), (255, 255, 255, 0))
    pen = ImageDraw.Draw(head)
    for x, end in ((92, 62), (164, 194)):
        pen.line((x, 70, end, 22), fill=(40, 90, 190), width=12)
        pen.ellipse((end - 18, 4, end + 18, 40), fill=(230, 50, 60))
    pen.ellipse((24, 42, 232, 250), fill=(70, 140, 240))
    for x in (92, 164):
        pen.ellipse((x - 15, 104, x + 15, 148), fill=(25, 35, 70))
    if mouth == "open":
        pen.ellipse((106, 172, 150, 222), fill=(25, 35, 70))
    elif mouth == "smile":
        pen.arc((78, 130, 178, 216), 25, 155, fill=(25, 35, 70), width=12)
    elif mouth == "sad":
        pen.arc((82, 184, 174, 264), 205, 335, fill=(25, 35, 70), width=12)
    else:
        pen.line((92, 196, 164, 196), fill=(25, 35, 70), width=12)
    side = round(scale * LARGE)
    head = head.rotate(tilt, Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (LARGE, LARGE), "white")
    canvas.alpha_composite(head, ((LARGE - side) // 2, (LARGE - side) // 2))
    return canvas.convert("RGB")


def draw(folder: Path) -> Path:
    """The four pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, looks in enumerate((("smile", 0.0, 1.0), ("open", 8.0, 0.96), ("sad", -8.0, 0.98), ("flat", 4.0, 0.94))):
        character(*looks).save(folder / f"zog_{k}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.subjects.emoji", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--comfyui", default="")
    parser.add_argument("--work", type=Path, default=HERE / "cache" / "emoji")
    parser.add_argument("--out", type=Path, default=HERE / "emoji.jpg")
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--method", default="LoRA")
    parser.add_argument("--weight", type=float, default=0.5, help="semantic weight")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    host.start(chosen.comfyui)
    rows = drawn(trained(chosen), draw(chosen.work / "pictures"))
    sheet(rows).save(chosen.out)
    print(f"{table(rows)}\n{chosen.out} written")


def trained(chosen: argparse.Namespace) -> tuple:
    """Base MODEL, CLIP, VAE, the subject's MODEL and its prompt; the run goes on where it was."""
    from gcfg_pack.gcfg.host.training import command_line
    from gcfg_pack.gcfg.host.training.subjects import train as subject
    from gcfg_pack.gcfg.training.data.variants import Subject
    from gcfg_pack.gcfg.training.subject_settings import SubjectSettings

    work = chosen.work.resolve()
    command_line.write_into(str(work / "models"))
    base, clip, vae = command_line.load(str(chosen.checkpoint))
    pictures = subject.prepare(Subject(str(draw(work / "pictures")), "", SIZE, augment=False, flip=True, count=16), vae,
                               work / "latents")
    settings = SubjectSettings(
        run_name="zog", class_word=CLASS, target_steps=chosen.steps, method=chosen.method, batch=4,
        learning_rate=chosen.rate, semantic_weight=chosen.weight, rank=chosen.rank, micro_batch=4, save_every=20,
        preview_every=0, output=str(work), initial_word=CLASS)
    watch = command_line.TerminalWatch(argparse.Namespace(asked=False), command_line_bar)
    with torch.inference_mode():
        made = subject.train(base, clip, pictures, settings, watch)
    return base, clip, vae, made.model, made.prompt


def command_line_bar(title: str):
    from gcfg.terminal import ProgressBar

    return ProgressBar(title)


def drawn(models: tuple, pictures: Path) -> dict[str, list[np.ndarray]]:
    """Rows of pictures by title: those of the folder; the base; the subject alone, asked by CFG, and class-guided."""
    base, clip, vae, subject, prompt = models
    alone = f"{CAPTION} {prompt}"
    plain, named = f"{CLASS} {REQUEST}", f"{alone} {REQUEST}"
    rows = {"four pictures": [np.asarray(Image.open(file).resize((SIZE, SIZE))) for file in
                              sorted(pictures.glob("*"))],
            f"base: {plain}": sampled(base, clip, vae, plain),
            f"subject: {alone}": sampled(subject, clip, vae, alone),
            f"subject by CFG: ... {REQUEST}": sampled(subject, clip, vae, named)}
    return rows | {f"class-guided, subject scale {r:g}": sampled(base, clip, vae, named, (plain, subject, r))
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


def table(rows: dict[str, list[np.ndarray]]) -> str:
    """What each row shows: the part of the pictures in which the judge finds sunglasses; how blue the heads are."""
    judge, _ = read()
    lines = ["| | sunglasses | blue |", "|---|---|---|"]
    for title, row in rows.items():
        pixels = torch.from_numpy(np.stack(row)).float().movedim(3, 1) / 255.0
        with torch.no_grad():
            found = judge(pixels)[1][:, list(ATTRIBUTES).index("sunglasses")] > 0.0
        head = pixels.amin(1) < 0.9
        blue = ((pixels[:, 2] > pixels[:, 0] + 0.15) & head).flatten(1).sum(1) / head.flatten(1).sum(1)
        lines.append(f"| {title} | {float(found.float().mean()):.2f} | {float(blue.mean()):.2f} |")
    return "\n".join(lines)


def sampled(model, clip, vae, prompt: str, guided: tuple | None = None) -> list[np.ndarray]:
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
        samples = nodes.KSampler().sample(model, 1, host.STEPS, cfg, host.SAMPLER, host.SCHEDULER, positive, empty,
                                          latent)[0]["samples"]
        return list((vae.decode(samples)[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).numpy())


if __name__ == "__main__":
    main()
