"""What multi-guidance sampling costs beside plain classifier-free guidance: time, forward passes, weights, memory.

    python benchmarks/sampling.py [--size tiny|sd15|sdxl] [--latent 64] [--steps 4] [--repeats 5] [--device cpu|cuda]

One run measures everything, repetitions interleaved, and prints the medians as a table of ratios to plain CFG. The
weights are random: speed does not depend on them. "n guidances" are the control guidance, the concept guidance and
n - 2 more prompts on the base: n + 1 predictions. Time is wall time on a GPU; on a CPU it is the process's CPU time in
one thread, which other work on the machine disturbs less.
"""

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import torch

from harness.find import NO_HOST, find_host
from harness.server.process import start

UNETS = {
    "sd15": {"model_channels": 320, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "context_dim": 768,
             "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1, "adm_in_channels": None,
             "transformer_depth_output": [1] * 9 + [0] * 3, "use_linear_in_transformer": False, "num_heads": 8},
    "sdxl": {"model_channels": 320, "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "context_dim": 2048,
             "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10, "adm_in_channels": 2816,
             "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
             "num_head_channels": 64, "num_classes": "sequential"},
}


def build(size: str, seed: int, dtype: torch.dtype):
    """A MODEL of the host with random weights: a tiny one, or one of real size."""
    import comfy.supported_models

    from harness.models import tiny
    if size == "tiny":
        return tiny.sd15(seed, dtype=dtype)
    config = tiny._UNET | {"num_heads": -1, "num_head_channels": -1} | UNETS[size]
    family = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}[size]
    return tiny._unet(family, config, seed, "eps", dtype)


def random_adapter(model, pack, rank: int = 16):
    """A concept adapter on all linear and convolution layers of the base, with random values."""
    from gcfg_pack.gcfg.nulltext.formats.adapter import Adapter
    pairs, features, gen = {}, {}, torch.manual_seed(0)
    for name, weight in model.model.diffusion_model.state_dict().items():
        if name.endswith("attn2.to_out.0.bias"):
            features[name.removesuffix(".attn2.to_out.0.bias")] = torch.randn((1, 1, len(weight)), generator=gen) * 0.1
        if weight.ndim < 2 or ".attn2." in name:
            continue
        down = torch.randn((rank, *weight.shape[1:]), generator=gen) * 0.01
        pairs[name.removesuffix(".weight")] = torch.randn((weight.shape[0], rank), generator=gen) * 0.01, down
    return Adapter(pairs, {}, features)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: given back and taken again, page faults cost half of some batches' time."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for option in (-1, -3) if set_option else ():  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        set_option(option, 1 << 30)


def weight_bytes(*models, adapters=()) -> int:
    modules = {id(m.model): m.model for m in models}
    tensors = [p for module in modules.values() for p in module.parameters()]
    tensors += [t for a in adapters for t in a.to_tensors().values()]
    return sum(t.numel() * t.element_size() for t in tensors)


class Bench:
    """The variants, each a function that samples once, and what they need."""

    def __init__(self, args, pack):
        from gcfg_pack.gcfg.host.concepts import concept
        from gcfg_pack.gcfg.host.sampling.chain import Link
        from gcfg_pack.gcfg.host.sampling.patch import apply
        from harness.models import tiny
        self.args = args
        dtype = torch.float32 if args.device == "cpu" else torch.float16
        self.base, self.second = build(args.size, 1, dtype), build(args.size, 2, dtype)
        adapter = random_adapter(self.base, pack)
        self.adapted = concept.apply_adapter(self.base, adapter)
        text = dict(width=2048, pooled=1280) if args.size == "sdxl" else {}
        self.positive, self.negative = (tiny.conditioning(s, tokens=77, **text) for s in (1, 2))
        self.latent = tiny.latent(height=args.latent, width=args.latent)
        more = [tiny.conditioning(s, tokens=77, **text) for s in (3, 4, 5)]
        extra = [Link(conditioning=c, scale=0.5) for c in more]
        two, one = Link(model=self.second, scale=1.5), Link(model=self.adapted, scale=1.5)
        both, alone, light = (self.base, self.second), (self.base,), (adapter,)
        self.variants = {"plain CFG (stock)": (lambda: self.sample(self.base), alone, ())}
        for terms in range(2, 5):
            for label, link, models, adapters in (("two copies", two, both, ()), ("one copy", one, alone, light)):
                patched = apply(self.base, [link, *extra[:terms - 2]])
                self.variants[f"GCFG {label}, {terms} guidances"] = (
                    lambda patched=patched: self.sample(patched), models, adapters)
        only_one = apply(self.base, [Link(conditioning=more[0], scale=0.0)])
        self.variants["GCFG 1 guidance"] = (lambda: self.sample(only_one), alone, ())
        self.variants["three separate calls (the paper's code)"] = (self.separate, both, ())
        for rows in range(3, 6):
            self.variants[f"bare forwards, batch {rows}"] = (
                lambda rows=rows: self.bare(((self.base, rows),)), alone, ())
        self.variants["bare forwards, batch 2 + 1"] = (lambda: self.bare(((self.base, 2), (self.second, 1))), both, ())

    def sample(self, model):
        import nodes
        return nodes.KSampler().sample(model, 5, self.args.steps, 2.5, "euler", "karras", self.positive, self.negative,
                                       self.latent, 1.0)

    def inputs(self, rows: int):
        device = self.base.load_device
        c = {"c_crossattn": torch.cat([self.positive[0][0]] * rows).to(device)}
        if self.args.size == "sdxl":
            c["y"] = torch.zeros((rows, 2816), device=device)
        x = torch.randn((rows, 4, self.args.latent, self.args.latent), device=device)
        return x, torch.full((rows,), 3.0, device=device), c

    def forward(self, model, rows: int):
        x, sigma, c = self.inputs(rows)
        return model.model.apply_model(x, sigma, **c)

    def bare(self, calls):
        """The forward passes of a run and nothing else."""
        import comfy.model_management
        comfy.model_management.load_models_gpu([self.base, self.second])
        for _ in range(self.args.steps):
            for model, rows in calls:
                self.forward(model, rows)

    def separate(self):
        """Three unbatched calls a step, as the official code makes them."""
        self.bare(((self.base, 1), (self.base, 1), (self.second, 1)))


def passes(bench: Bench, run) -> float:
    """Forward passes a step."""
    count = []
    handles = [m.model.diffusion_model.register_forward_hook(lambda *_: count.append(1))
               for m in (bench.base, bench.second)]
    run()
    for handle in handles:
        handle.remove()
    return len(count) / bench.args.steps


def measure(bench: Bench) -> list[tuple]:
    """(name, median seconds a step, passes a step, weight bytes, peak bytes or None) of each variant."""
    times = {name: [] for name in bench.variants}
    peaks = dict.fromkeys(bench.variants)
    cuda = bench.args.device == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    counted = {name: passes(bench, run) for name, (run, *_) in bench.variants.items()}  # warms up, too
    for _ in range(bench.args.repeats):
        for name, (run, *_) in bench.variants.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            begin = clock()
            run()
            if cuda:
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated()
            times[name].append((clock() - begin) / bench.args.steps)
    return [(name, statistics.median(times[name]), counted[name], weight_bytes(*models, adapters=adapters), peaks[name])
            for name, (_, models, adapters) in bench.variants.items()]


def table(rows: list[tuple]) -> str:
    _, time_0, _, weights_0, peak_0 = rows[0]
    lines = ["| variant | time a step | of plain CFG | passes a step | weights | of plain CFG | peak memory |",
             "|---|---|---|---|---|---|---|"]
    for name, seconds, count, weights, peak in rows:
        memory = "-" if peak is None else f"{peak / peak_0:.2f}"
        lines.append(f"| {name} | {seconds * 1e3:.1f} ms | {seconds / time_0:.2f} | {count:g} | "
                     f"{weights / 2**20:.1f} MiB | {weights / weights_0:.2f} | {memory} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=["tiny", *UNETS], default="tiny", help="which UNet")
    parser.add_argument("--latent", type=int, default=None, help="side of the latent; 16 for tiny, else 64")
    parser.add_argument("--steps", type=int, default=4, help="steps of a run")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run")
    args = parser.parse_args()
    args.latent = args.latent or (16 if args.size == "tiny" else 64)
    keep_freed_memory()
    host = find_host()
    if host is None:
        parser.exit(3, f"{NO_HOST}\n")
    pack = start(host, cpu=args.device == "cpu")
    torch.set_num_threads(1)
    import comfy.utils
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode():
        rows = measure(Bench(args, pack))
    print(f"{args.size}, latent {args.latent} x {args.latent}, {args.steps} steps, median of {args.repeats} on "
          f"{args.device}, torch {torch.__version__}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
