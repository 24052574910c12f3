"""What training costs: steps a second and memory of every memory preset, beside the same steps by a plain loop.

    python benchmarks/training.py [--families sd15 sdxl Flux.1 Z-Image] [--variants "LoRA 16, 24 GB" ...]
                                  [--size tiny|sd15] [--latent 16] [--steps 20] [--device cpu|cuda]

"ours" is the training of this pack: latents from disk, noise that depends on the step alone, checks of every loss and
gradient, records. "plain" is a loop written by hand over the same network, optimizer, precision and average, with
latents in memory and no checks. "diffusers" is that loop over diffusers' UNet of the same shape, which keeps its
cross-attention; it needs the package. Each is a process of its own with random weights. The processes take turns step
by step, so that other work on the machine meets all of them; times are medians, of CPU time on a CPU. "Peak" is what
the device allocated at most, on a CPU how far the process grew over what it was before the network was built.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
# So that memory which is given back leaves the process, and its size says what is in use.
os.environ |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

import torch
from sampling import build

from harness.find import find_host
from harness.server.process import start

VARIANTS = {
    "full, 24 GB": {"memory": "24 GB"},
    "full, 16 GB": {"memory": "16 GB"},
    "full, 12 GB": {"memory": "12 GB"},
    "full, 8 GB": {"memory": "8 GB"},
    "full, 8 GB, fused backward": {"memory": "8 GB", "fused_backward": True},
    "LoRA 16, 24 GB": {"memory": "24 GB", "method": "LoRA"},
    "LoRA 16, 8 GB": {"memory": "8 GB", "method": "LoRA"},
}
BATCH, PICTURES, WARM_UP = 4, 16, 3
SHAPES = {"tiny": {"block_out_channels": (32,), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D",),
                   "up_block_types": ("CrossAttnUpBlock2D",)}, "sd15": {}}


def worker(side: str, family: str, variant: str, args: argparse.Namespace, pipe) -> None:
    """Build one of the loops, take a step whenever told to and send its seconds, at last (held, peak, optimizer)."""
    torch.set_num_threads(args.threads)
    step, held, before, about = {"ours": ours, "plain": plain, "diffusers": diffusers}[side](family, variant, args)
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    pipe.send("ready")
    while pipe.recv() == "step":
        begun = clock()
        step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        pipe.send(clock() - begun)
    pipe.send((held(), peak(args) - before, about))


def now(args: argparse.Namespace) -> int:
    """Bytes in use, from where the peak is counted from now on."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(args: argparse.Namespace) -> int:
    return torch.cuda.max_memory_allocated() if args.device == "cuda" else status("VmHWM")


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def size_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def form_of(family: str, variant: str, args: argparse.Namespace):
    """The form of a family's network that is trained, its settings and plan, and the bytes before it was built."""
    start(find_host(), cpu=args.device == "cpu")
    from gcfg_pack.gcfg.host.training.models.empty_prompt import EmptyPrompt
    from gcfg_pack.gcfg.host.training.models.network import differentiable
    from gcfg_pack.gcfg.host.training.models.trainable import Trainable
    from gcfg_pack.gcfg.nulltext.attention import cross_attention_blocks
    from gcfg_pack.gcfg.training import memory
    from gcfg_pack.gcfg.training.settings import Settings
    from gcfg_pack.gcfg.training.weights import optimizers
    from harness.models import tiny
    from harness.models.families import FAMILIES

    differentiable().__enter__()
    settings = Settings(batch=BATCH, learning_rate=1e-4, **VARIANTS[variant])
    plan, device = memory.plan(settings, None, optimizers.has_8_bit()), torch.device(args.device)
    if family in FAMILIES:
        base, empty = FAMILIES[family].model(0), FAMILIES[family].conditioning(0)
        before = now(args)
        return EmptyPrompt(base, empty, settings, plan, device), settings, plan, before
    base = tiny.sdxl(0) if family == "sdxl" else build(args.size, 0, torch.float32)
    width = {"sdxl": {"width": 2048, "pooled": 1280}}.get(family, {})
    features = {name: torch.zeros(1, 1, block.attn2.to_out[0].out_features)
                for name, block in cross_attention_blocks(base.model.diffusion_model).items()}
    before = now(args)
    return Trainable(base, features, tiny.conditioning(1, **width), settings, plan, device), settings, plan, before


def ours(family: str, variant: str, args: argparse.Namespace):
    """The training of this pack."""
    form, settings, plan, before = form_of(family, variant, args)
    from gcfg_pack.gcfg.training.run.folder import RunFolder
    from gcfg_pack.gcfg.training.run.loop import Training

    folder = Path(tempfile.mkdtemp(prefix="gcfg-benchmark-"))
    latents = on_disk(folder, (form.latent_format.latent_channels, args.latent, args.latent))
    run = Training(form.task({}), latents, [], settings, plan, RunFolder(folder))

    def step() -> None:
        run.optimize()
        run.step += 1

    def held() -> int:
        weights = [*form.network.parameters(), *(form.parameters.values() if settings.method == "LoRA" else ())]
        return size_of([*weights, *run.optimizer.tensors().values(), *run.average.values.values()])
    return step, held, before, plan.optimizer


def on_disk(folder: Path, shape: tuple[int, ...]) -> list:
    """Random latents as a run finds them."""
    import numpy as np

    from gcfg_pack.gcfg.training.data.dataset import Latent

    found = []
    for k in range(PICTURES):
        np.save(folder / f"{k}.npy", np.random.default_rng(k).standard_normal((2, *shape)).astype(np.float16))
        found.append(Latent(str(k), str(folder / f"{k}.npy"), shape))
    return found


def plain(family: str, variant: str, args: argparse.Namespace):
    """A loop by hand over the network that ``ours`` trains."""
    form, settings, plan, before = form_of(family, variant, args)
    parameters, losses = list(form.parameters.values()), form.task({}).losses
    latents = torch.randn(PICTURES, form.latent_format.latent_channels, args.latent, args.latent, device=args.device)

    def loss(rows):
        with torch.autocast(args.device, form.autocast, enabled=form.autocast is not None):
            return losses(latents[rows], torch.randn_like(latents[rows]), torch.rand(len(rows), device=args.device), [])
    average = [p.detach().to("cpu" if plan.ema_on_cpu else args.device, torch.float32, copy=True) for p in parameters]
    step, state = by_hand(parameters, average, loss, plan.optimizer, plan.micro_batch)

    def held() -> int:
        weights = [*form.network.parameters(), *(parameters if settings.method == "LoRA" else ())]
        return size_of([*weights, *state(), *average])
    return step, held, before, plan.optimizer


def diffusers(family: str, variant: str, args: argparse.Namespace):
    """The same loop over diffusers' UNet: float32, AdamW, noise prediction."""
    from diffusers import UNet2DConditionModel
    from torch.nn import functional as F

    before = now(args)
    unet = UNet2DConditionModel(sample_size=args.latent, cross_attention_dim=768, attention_head_dim=8,
                                **SHAPES[args.size]).to(args.device)
    text = torch.zeros(BATCH, 77, 768, device=args.device)
    latents = torch.randn(PICTURES, 4, args.latent, args.latent, device=args.device)

    def loss(rows):
        noise, t = torch.randn_like(latents[rows]), torch.randint(0, 1000, (len(rows),), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            output = unet(latents[rows] + noise, t, text[:len(rows)]).sample
        return F.mse_loss(output.float(), noise, reduction="none").flatten(1).mean(1)
    parameters = list(unet.parameters())
    average = [p.detach().to("cpu", copy=True) for p in parameters]
    step, state = by_hand(parameters, average, loss, "adamw", BATCH)
    return step, lambda: size_of([*parameters, *average, *state()]), before, "adamw"


def by_hand(parameters: list, average: list, loss, kind: str, micro_batch: int):
    """A step of a plain loop, and what its optimizer holds."""
    if kind == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=1e-2, fused=True)
    else:
        optimizer = torch.optim.Adafactor(parameters, lr=1e-5, weight_decay=1e-2)

    def step() -> None:
        for rows in torch.randperm(PICTURES)[:BATCH].split(micro_batch):
            (loss(rows).sum() / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach().to(a) for p, a in zip(parameters, average, strict=True)], 0.01)
    return step, lambda: [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]


def measure(family: str, variant: str, args: argparse.Namespace) -> dict[str, tuple]:
    """(seconds of each step, held, peak, optimizer) of all sides, which take turns."""
    wanted = {"ours", "plain"}
    if importlib.util.find_spec("diffusers") and (family, variant) == ("sd15", "full, 24 GB"):
        wanted.add("diffusers")
    context, sides = multiprocessing.get_context("spawn"), {}
    for side in sorted(wanted):
        mine, theirs = context.Pipe()
        process = context.Process(target=worker, args=(side, family, variant, args, theirs))
        process.start()
        theirs.close()
        sides[side] = process, mine
        mine.recv()
    seconds = {side: [] for side in sides}
    for k in range(WARM_UP + args.steps):
        for side in sorted(sides, reverse=bool(k % 2)):
            sides[side][1].send("step")
            seconds[side].append(sides[side][1].recv())
    found = {}
    for side, (process, pipe) in sides.items():
        pipe.send("report")
        found[side] = seconds[side][WARM_UP:], *pipe.recv()
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--families", nargs="+", default=["sd15", "sdxl", "Flux.1", "Z-Image"], help="whose networks")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--size", choices=list(SHAPES), default="tiny", help="of sd15")
    parser.add_argument("--latent", type=int, default=16, help="side of the latents")
    parser.add_argument("--steps", type=int, default=20, help="steps to time")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU")
    args = parser.parse_args()
    print(f"{args.size}, latents {args.latent} x {args.latent}, batch {BATCH}, {args.steps} steps on {args.device}, "
          f"torch {torch.__version__}\n\n| family | variant | optimizer | loop | steps a second | ours is faster by | "
          "held | peak |\n|---|---|---|---|---|---|---|---|")
    for family in args.families:
        for variant in args.variants:
            if family in ("sd15", "sdxl") or variant.startswith("LoRA"):
                show(family, variant, measure(family, variant, args))


def show(family: str, variant: str, found: dict[str, tuple]) -> None:
    own = found["ours"][0]
    for side, (seconds, held, most, optimizer) in sorted(found.items(), key=lambda item: item[0] != "ours"):
        ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds, own, strict=True))
        print(f"| {family} | {variant} | {optimizer} | {side} | {1 / statistics.median(seconds):.2f} | "
              f"{'' if side == 'ours' else f'{ratio:.2f} x'} | {held / 2**20:.1f} MiB | {most / 2**20:.0f} MiB |",
              flush=True)


if __name__ == "__main__":
    main()
