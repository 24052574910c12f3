"""What training costs: steps a second and memory of every memory preset, beside the same steps by a plain loop.

    python benchmarks/training.py [--families sd15 sdxl Flux.1 Z-Image] [--variants "LoRA 16, 24 GB" ...]
                                  [--size tiny|sd15] [--latent 16] [--starts 6] [--steps 6] [--seconds 2]
                                  [--device cpu|cuda]

"ours" is the training of this pack: latents from disk, noise that depends on the step alone, checks of every loss and
gradient. "plain" is a loop written by hand over the same network, optimizer, precision, clipping and average, updated
in the backward pass where ours is, with latents in memory and no checks. "diffusers" is that loop over diffusers' UNet
of the same shape, which keeps its cross-attention; it needs the package. Each is a process of its own with random
weights. The processes take turns step by step, now this one first, now that one, so that other work on the machine
meets all of them. They share one core, since two may differ, and are started several times, because where the
allocator puts things makes one start faster than another. Times are medians, of CPU time on a CPU. "Ours is faster by"
is the median of the ratios of neighbouring steps, with the interval that holds it in 95 % of 2000 samples of the
starts and of the steps in each (bootstrap).
"Peak" is what the device allocated at most; on a CPU how far a process grew over what it was before the network was
built, in further processes that give back at once what they free.
"""

import argparse
import ctypes
import importlib.util
import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from loops import BATCH, LOOPS, SHAPES, ready

VARIANTS = {
    "full, 24 GB": {"memory": "24 GB"},
    "full, 16 GB": {"memory": "16 GB"},
    "full, 12 GB": {"memory": "12 GB"},
    "full, 8 GB": {"memory": "8 GB"},
    "full, 8 GB, fused backward": {"memory": "8 GB", "fused_backward": True},
    "LoRA 16, 24 GB": {"memory": "24 GB", "method": "LoRA"},
    "LoRA 16, 8 GB": {"memory": "8 GB", "method": "LoRA"},
}
WARM_UP = 3
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Of glibc's mallopt."""


def worker(side: str, family: str, variant: str, args: argparse.Namespace, thrifty: bool, pipe) -> None:
    """Build one of the loops, take a step whenever told to and send its seconds, at last (held, peak, optimizer)."""
    torch.set_num_threads(args.threads)
    if args.threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if thrifty:
        give_back()
    loop = LOOPS[side](family, VARIANTS[variant], args, now)
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    pipe.send("ready")
    while pipe.recv() == "step":
        begun = clock()
        loop.step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        pipe.send(clock() - begun)
    pipe.send((size_of(loop.kept()), peak(args) - loop.before, loop.optimizer))


def give_back() -> None:
    """From now on memory that is freed leaves the process, so that its size says what is in use. It costs time."""
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((ARENA_MAX, 1), (MMAP_THRESHOLD, 65536), (TRIM_THRESHOLD, 65536)):
        libc.mallopt(option, value)
    libc.malloc_trim(0)


def now(args: argparse.Namespace) -> int:
    """Bytes in use, from where the peak is counted from now on."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("RssAnon")


def peak(args: argparse.Namespace) -> int:
    """Bytes at most; on a CPU without the files of libraries, which only grow."""
    return torch.cuda.max_memory_allocated() if args.device == "cuda" else status("VmHWM") - status("RssFile")


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def size_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(family: str, variant: str, args: argparse.Namespace) -> dict[str, tuple]:
    """(seconds of the steps of each start, held, peak, optimizer) of all sides, which take turns."""
    wanted = {"ours", "plain"}
    if importlib.util.find_spec("diffusers") and (family, variant) == ("sd15", "full, 24 GB"):
        wanted.add("diffusers")
    seconds = {side: [] for side in wanted}
    for _ in range(args.starts):
        taken, reports = turns(wanted, family, variant, args, args.steps, args.seconds)
        for side, more in taken.items():
            seconds[side].append(np.array(more))
    if args.device != "cuda":
        reports = {side: turns({side}, family, variant, args, 2, 0.0, thrifty=True)[1][side] for side in wanted}
    return {side: (seconds[side], *reports[side]) for side in wanted}


def turns(wanted: set[str], family: str, variant: str, args: argparse.Namespace, steps: int, enough: float,
          thrifty: bool = False) -> tuple[dict[str, list[float]], dict[str, tuple]]:
    """Seconds of at least so many steps of each side, taken for ``enough`` seconds, and what each reports."""
    context, sides = multiprocessing.get_context("spawn" if args.device == "cuda" else "fork"), {}
    for side in sorted(wanted):
        mine, theirs = context.Pipe()
        process = context.Process(target=worker, args=(side, family, variant, args, thrifty, theirs))
        process.start()
        theirs.close()
        sides[side] = process, mine
        mine.recv()
    taken, begun, count = {side: [] for side in sides}, time.perf_counter(), 0
    while count < WARM_UP + steps or time.perf_counter() - begun < enough:
        for side in sorted(sides, reverse=bool(count % 2)):
            sides[side][1].send("step")
            taken[side].append(sides[side][1].recv())
        count += 1
    reports = {}
    for side, (process, pipe) in sides.items():
        pipe.send("report")
        reports[side] = pipe.recv()
        process.join()
    return {side: seconds[WARM_UP:] for side, seconds in taken.items()}, reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--families", nargs="+", default=["sd15", "sdxl", "Flux.1", "Z-Image"], help="whose networks")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--size", choices=list(SHAPES), default="tiny", help="of sd15")
    parser.add_argument("--latent", type=int, default=16, help="side of the latents")
    parser.add_argument("--starts", type=int, default=6, help="how often the processes are started")
    parser.add_argument("--steps", type=int, default=6, help="steps of each to time in a start, at least")
    parser.add_argument("--seconds", type=float, default=2.0, help="for how long, at least")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU")
    args = parser.parse_args()
    if args.device != "cuda":
        ready(args)  # once: the processes are copies of this one
    print(f"{args.size}, latents {args.latent} x {args.latent}, batch {BATCH}, {args.starts} starts, each at least "
          f"{args.steps} steps and {args.seconds:g} seconds, on {args.device}, torch {torch.__version__}\n\n"
          "| family | variant | optimizer | ours | plain | ours is faster by | pairs | held, ours and plain | peak |\n"
          + "|---" * 9 + "|")
    for family in args.families:
        for variant in args.variants:
            if family in ("sd15", "sdxl") or variant.startswith("LoRA"):
                show(family, variant, measure(family, variant, args))


def show(family: str, variant: str, found: dict[str, tuple]) -> None:
    own, held, peak, optimizer = found["ours"]
    for side in sorted(found.keys() - {"ours"}, reverse=True):
        seconds, their_held, their_peak, _ = found[side]
        print(f"| {family} | {variant} | {optimizer} | {rate(own)} | {rate(seconds)}"
              f"{'' if side == 'plain' else f' ({side})'} | "
              f"{ratio([theirs / ours for theirs, ours in zip(seconds, own, strict=True)])} | {sum(map(len, own))} | "
              f"{held / 2**20:.1f}, {their_held / 2**20:.1f} MiB | {peak / 2**20:.1f}, {their_peak / 2**20:.1f} MiB |",
              flush=True)


def rate(seconds: list[np.ndarray]) -> str:
    return f"{1 / np.median(np.concatenate(seconds)):.3g}"


def ratio(starts: list[np.ndarray]) -> str:
    """The median of the ratios of several starts, and its 95 % interval: starts are drawn again, and ratios in each."""
    random = np.random.default_rng(0)
    medians = [np.median(np.concatenate([random.choice(ratios, len(ratios)) for ratios in
                                         (starts[k] for k in random.integers(len(starts), size=len(starts)))]))
               for _ in range(2000)]
    low, high = np.quantile(medians, (0.025, 0.975))
    return f"{np.median(np.concatenate(starts)):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
