"""What training costs: steps a second and memory of every memory preset, and of the same loop written plainly.

    python benchmarks/training.py [--size tiny|sd15] [--latent 16] [--steps 20] [--device cpu|cuda]

Each row is a process of its own on a network with random weights and latents from disk, the batch split as the preset
says. "Held" are the bytes of weights, optimizer and average; "peak" is what the device allocated at most (on a CPU how
far the process grew over what it was before). The plain loop is diffusers' UNet of the same shape with its
cross-attention, AdamW in float32 and no average; it needs the package diffusers.
"""

import argparse
import importlib.util
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sampling import build

from harness.find import find_host
from harness.server.process import start

ROWS = {
    "full, 24 GB": {"memory": "24 GB"},
    "full, 16 GB": {"memory": "16 GB"},
    "full, 12 GB": {"memory": "12 GB"},
    "full, 8 GB": {"memory": "8 GB"},
    "full, 8 GB, fused backward": {"memory": "8 GB", "fused_backward": True},
    "LoRA 16, 24 GB": {"memory": "24 GB", "method": "LoRA"},
    "LoRA 16, 8 GB": {"memory": "8 GB", "method": "LoRA"},
}
BATCH = 4
SHAPES = {"tiny": {"block_out_channels": (32,), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D",),
                   "up_block_types": ("CrossAttnUpBlock2D",)}, "sd15": {}}


def measure(row: str, args: argparse.Namespace, queue) -> None:
    """Run one row in this process and put (steps a second, bytes held, peak bytes, optimizer) into the queue."""
    torch.set_num_threads(args.threads)
    prepare, about = plain(args) if row == "plain" else ours(ROWS[row], args)
    step, held = prepare()
    step()
    step()  # the optimizer has its state by now
    before = time.perf_counter()
    for _ in range(args.steps):
        step()
    if args.device == "cuda":
        torch.cuda.synchronize()
    rate = args.steps / (time.perf_counter() - before)
    queue.put((rate, held(), peak(args) - about["before"], about["optimizer"]))


def peak(args: argparse.Namespace) -> int:
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def ours(changes: dict, args: argparse.Namespace):
    """The training of this pack."""
    start(find_host(), cpu=args.device == "cpu")
    from gcfg_pack.gcfg.host.training.models import trainable
    from gcfg_pack.gcfg.training import memory
    from gcfg_pack.gcfg.training.data.dataset import Latent
    from gcfg_pack.gcfg.training.run.folder import RunFolder
    from gcfg_pack.gcfg.training.run.loop import Training
    from gcfg_pack.gcfg.training.settings import Settings
    from gcfg_pack.gcfg.training.weights import optimizers
    from harness.models import tiny

    settings = Settings(batch=BATCH, **changes)
    plan = memory.plan(settings, None, optimizers.has_8_bit())
    about = {"before": 0, "optimizer": plan.optimizer}

    def prepare():
        base = build(args.size, 0, torch.float32)
        widths = {name: block.attn2.to_out[0].out_features for name, block in
                  trainable.cross_attention_blocks(base.model.diffusion_model).items()}
        features = {name: torch.zeros(1, 1, width) for name, width in widths.items()}
        about["before"] = peak(args)
        model = trainable.Trainable(base, features, tiny.conditioning(1), settings, plan, torch.device(args.device))
        folder = Path(tempfile.mkdtemp(prefix="gcfg-benchmark-"))
        run = Training(model.task({}), latents(folder, args.latent, Latent), [], settings, plan, RunFolder(folder))

        def step() -> None:
            run.optimize()
            run.step += 1

        def held() -> int:
            weights = [*model.network.parameters(), *(p for n, p in model.parameters.items() if not model.full)]
            return size_of([*weights, *run.optimizer.tensors().values(), *run.average.values.values()])
        return step, held
    return prepare, about


def latents(folder: Path, side: int, latent: type) -> list:
    """Random latents on disk."""
    import numpy as np

    found = []
    for k in range(16):
        values = np.random.default_rng(k).standard_normal((2, 4, side, side)).astype(np.float16)
        np.save(folder / f"{k}.npy", values)
        found.append(latent(str(k), str(folder / f"{k}.npy"), (4, side, side)))
    return found


def plain(args: argparse.Namespace):
    """The same step by hand: diffusers' UNet, AdamW, one batch."""
    from diffusers import UNet2DConditionModel

    about = {"before": 0, "optimizer": "adamw"}

    def prepare():
        about["before"] = peak(args)
        unet = UNet2DConditionModel(sample_size=args.latent, cross_attention_dim=768, attention_head_dim=8,
                                    **SHAPES[args.size]).to(args.device)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, weight_decay=1e-2)
        text = torch.zeros(BATCH, 77, 768, device=args.device)

        def step() -> None:
            x, noise = torch.randn(2, BATCH, 4, args.latent, args.latent, device=args.device)
            t = torch.randint(0, 1000, (BATCH,), device=args.device)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
                output = unet(x, t, text).sample
            (output.float() - noise).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def held() -> int:
            return size_of([*unet.parameters(), *(t for s in optimizer.state.values() for t in s.values())])
        return step, held
    return prepare, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=list(SHAPES), default="tiny", help="which UNet")
    parser.add_argument("--latent", type=int, default=16, help="side of the latents")
    parser.add_argument("--steps", type=int, default=20, help="steps to time")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU")
    args = parser.parse_args()
    rows = [*ROWS, *(["plain"] if importlib.util.find_spec("diffusers") else [])]
    print(f"{args.size}, latents {args.latent} x {args.latent}, batch {BATCH}, {args.steps} steps on {args.device}, "
          f"torch {torch.__version__}\n\n| variant | optimizer | steps a second | held | peak |\n|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for row in rows:
        queue = context.SimpleQueue()
        process = context.Process(target=measure, args=(row, args, queue))
        process.start()
        process.join()
        if process.exitcode:
            print(f"| {row} | - | failed | - | - |", flush=True)
            continue
        rate, held, most, optimizer = queue.get()
        print(f"| {row} | {optimizer} | {rate:.2f} | {held / 2**20:.1f} MiB | {most / 2**20:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
