"""What an adapter on rows costs at real width: time of its row, memory, and preparation of a run.

    python benchmarks/rows.py [--family Qwen-Image] [--heads 16] [--layers 1] [--latent 48] [--rank 32] [--repeats 5]

One transformer layer or a few of them at the width of the real model (heads of 128 channels), random weights. A row
without an adapter is what a third prompt adds to a step, a row with one what a LoRA on all linear layers adds in its
place. On a CPU the time is the process's own in one thread, repetitions interleaved, the fastest counts.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import torch

from harness.find import NO_HOST, find_host
from harness.server.process import start

WIDE = {
    "Qwen-Image": lambda heads: {"num_attention_heads": heads, "attention_head_dim": 128,
                                 "axes_dims_rope": (16, 56, 56)},
    "Flux.1": lambda heads: {"hidden_size": 128 * heads, "num_heads": heads, "axes_dim": [16, 56, 56],
                             "mlp_ratio": 4.0},
    "Wan 2.1 text to video": lambda heads: {"dim": 128 * heads, "num_heads": heads, "ffn_dim": 512 * heads},
}
DEPTHS = {"Qwen-Image": ("num_layers",), "Flux.1": ("depth", "depth_single_blocks"),
          "Wan 2.1 text to video": ("num_layers",)}


def lora(model, rank: int) -> dict[str, torch.Tensor]:
    """A LoRA file on all linear layers."""
    file = {}
    for name, layer in model.model.diffusion_model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            file[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(layer.out_features, rank) * 0.01
            file[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(rank, layer.in_features) * 0.01
    return file


def measure(args) -> str:
    import comfy.sd
    import comfy.utils

    from gcfg_pack.gcfg.host.sampling.chain import Link
    from gcfg_pack.gcfg.host.sampling.patch import apply
    from gcfg_pack.gcfg.host.weights.rows import row_adapter
    from harness.models.families import FAMILIES
    from harness.sampling import stock
    comfy.utils.PROGRESS_BAR_ENABLED = False
    family = FAMILIES[args.family]
    unet = {**family.unet, **WIDE[args.family](args.heads), **dict.fromkeys(DEPTHS[args.family], args.layers)}
    family = replace(family, unet=unet, tokens=64,
                     latent=(*family.latent[:-2], args.latent, args.latent))
    base = family.model(1)
    tuned = comfy.sd.load_lora_for_models(base, None, lora(base, args.rank), 1.0, 0.0)[0]
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    begin = clock()
    adapter = row_adapter(tuned, base)
    prepared = clock() - begin
    positive, negative, third = (family.conditioning(seed) for seed in (1, 2, 3))
    runs = {"two": base, "three": apply(base, [Link(conditioning=third)]), "adapted": apply(base, [Link(model=tuned)])}
    times = {name: [] for name in runs}
    for _ in range(args.repeats + 1):  # the first warms up
        for name, model in runs.items():
            begin = clock()
            stock(model, positive, negative, family.latents(), steps=1, scheduler="simple")
            if args.device == "cuda":
                torch.cuda.synchronize()
            times[name].append(clock() - begin)
    best = {name: min(values[1:]) for name, values in times.items()}
    row = best["three"] - best["two"]
    weights = sum(p.nbytes for p in base.model.parameters())
    return (f"| {args.family} | {weights / 2**20:.0f} MiB, {len(adapter.layers)} layers | {row * 1e3:.0f} ms "
            f"| {(best['adapted'] - best['three']) / row:+.1%} | {1 + adapter.nbytes / weights:.3f} "
            f"| {prepared * 1e3:.0f} ms |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--family", choices=list(WIDE), default="Qwen-Image", help="which transformer")
    parser.add_argument("--heads", type=int, default=16, help="attention heads of 128 channels")
    parser.add_argument("--layers", type=int, default=1, help="blocks of each kind")
    parser.add_argument("--latent", type=int, default=48, help="side of the latent")
    parser.add_argument("--rank", type=int, default=32, help="rank of the LoRA")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run")
    args = parser.parse_args()
    host = find_host()
    if host is None:
        parser.exit(3, f"{NO_HOST}\n")
    start(host, cpu=args.device == "cpu")
    torch.set_num_threads(1)
    with torch.inference_mode():
        line = measure(args)
    print(f"| family | weights | a plain row | an adapter's row beside it | weights with the adapter | preparation |\n"
          f"|---|---|---|---|---|---|\n{line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
