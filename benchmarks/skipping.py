"""Fewer forward passes at equal pictures: what refreshing, adaptive skipping and a concept window save and cost.

    python benchmarks/skipping.py [--samples 1000] [--steps 25] [--cache benchmarks/miniature/cache]

GCFG on the miniature's models (trained by ``python -m benchmarks.miniature``; one set a training seed): forward passes
a sample, Frechet distance to the concept, control accuracy, and how far pictures move from those of full GCFG. The
same passes spent on fewer steps without any reuse stand beside it. With a host, the relative difference of latents of
a tiny random network, too. Prints a table and writes it to ``benchmarks/SKIPPING.md``.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import torch

from harness.find import PACK, find_host, load_package

load_package("gcfg", PACK / "gcfg")  # the pack's root must not be on sys.path, where it would hide the host's nodes

from gcfg.guidance import Performance, Prediction  # noqa: E402
from gcfg.miniature.evaluate import SEEN, Reference, captions, reference, requests, score  # noqa: E402
from gcfg.miniature.pictures import SIZE  # noqa: E402
from gcfg.miniature.recipes import gcfg  # noqa: E402
from gcfg.miniature.sampling import sample_in_batches  # noqa: E402
from gcfg.miniature.store import CLASSIFIER, DENOISERS, load  # noqa: E402

CONCEPT, CONTROL = 1.0, 2.0
"""The scales that the miniature found best."""
SETTINGS = {
    "full GCFG": Performance(),
    "refresh every 2": Performance(refresh_every=2),
    "refresh every 3": Performance(refresh_every=3),
    "refresh every 4": Performance(refresh_every=4),
    "calm below 0.1": Performance(calm_below=0.1),
    "calm below 0.3": Performance(calm_below=0.3),
    "refresh every 2, calm below 0.3": Performance(refresh_every=2, calm_below=0.3),
    "concept window 0.1..1": Performance(concept_start=0.1),
    "concept window 0..0.9": Performance(concept_end=0.9),
}


@dataclass
class Counted:
    """A model that counts the rows it evaluates."""

    model: torch.nn.Module
    rows: int = 0

    def __call__(self, x, sigma, caption):
        self.rows += len(x)
        return self.model(x, sigma, caption)


@dataclass(frozen=True)
class Outcome:
    """One setting on one training seed: passes a sample, Frechet distance, accuracies, RMS change of the pictures."""

    passes: float
    distance: float
    colour: float
    both: float
    change: float


def windowed(performance: Performance):
    """The recipe with the concept window that a performance asks for, as the host's runtime applies it."""
    recipe = gcfg(CONCEPT, CONTROL)
    guidances = [replace(g, start=performance.concept_start, end=performance.concept_end)
                 if g.prediction == Prediction("concept") else g for g in recipe.guidances]
    return replace(recipe, guidances=tuple(guidances))


def run(models: Mapping[str, torch.nn.Module], performance: Performance, attributes, noise, steps: int):
    """Pictures (N, 3, 16, 16) and forward passes a sample."""
    counted = {name: Counted(model) for name, model in models.items()}
    pictures = sample_in_batches(counted, windowed(performance), captions(attributes, "colour"), noise, steps=steps,
                                 performance=performance).clamp(-1, 1)
    return pictures, sum(c.rows for c in counted.values()) / len(noise)


def of_seed(folder: Path, goal: Reference, samples: int, steps: int, seed: int) -> dict[str, Outcome]:
    """All settings on the models of one training seed, with the same requests and noise."""
    models = {name: load(folder, name) for name in DENOISERS}
    generator = torch.Generator().manual_seed(60_000 + seed)
    attributes = requests(samples, SEEN, generator)
    noise = torch.randn((samples, 3, SIZE, SIZE), generator=generator)
    full, outcomes = None, {}
    fewer = {f"full GCFG, {n} steps": (Performance(), n) for n in (steps * 2 // 3, steps * 5 // 9, steps // 2)}
    for name, (performance, count) in ({n: (p, steps) for n, p in SETTINGS.items()} | fewer).items():
        pictures, passes = run(models, performance, attributes, noise, count)
        full = pictures if full is None else full
        s = score(pictures, attributes, SEEN, goal)
        change = float((pictures - full).square().mean().sqrt())
        outcomes[name] = Outcome(passes, s.distance, s.colour, s.both, change)
        print(f"  seed {seed}  {name}: {passes:.1f} passes, distance {s.distance:.1f}", file=sys.stderr)
    return outcomes


def table(outcomes: list[dict[str, Outcome]]) -> str:
    """Means over the training seeds with their spread (standard deviation)."""
    def cell(values: list[float], digits: int) -> str:
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"
    full = statistics.mean(o["full GCFG"].passes for o in outcomes)
    lines = ["| setting | passes a sample | saved | Frechet distance | colour | colour and look | change |",
             "|---|---|---|---|---|---|---|"]
    for name in outcomes[0]:
        each = [o[name] for o in outcomes]
        passes = statistics.mean(e.passes for e in each)
        lines.append(f"| {name} | {passes:.1f} | {1 - passes / full:.0%} | {cell([e.distance for e in each], 1)} | "
                     f"{cell([e.colour for e in each], 3)} | {cell([e.both for e in each], 3)} | "
                     f"{cell([e.change for e in each], 3)} |")
    return "\n".join(lines)


def host_table(host: Path, steps: int) -> str:
    """Relative difference of the final latent from full GCFG on a tiny random network of the host."""
    from harness.server.process import start
    start(host)
    import comfy.utils

    from gcfg_pack.gcfg import guidance
    from gcfg_pack.gcfg.host.sampling.chain import Link
    from gcfg_pack.gcfg.host.sampling.patch import apply
    from harness.models import tiny
    from harness.sampling import counted, stock
    comfy.utils.PROGRESS_BAR_ENABLED = False
    base, concept = tiny.sd15(1), tiny.sd15(2)
    lines, full = ["| setting | passes | RMS difference, relative to the latent's RMS |", "|---|---|---|"], None
    with torch.inference_mode():
        for name, p in SETTINGS.items():
            same = guidance.Performance(p.refresh_every, p.calm_below, p.concept_start, p.concept_end)
            patched = apply(base, [Link(model=concept, scale=CONCEPT)], performance=same)
            with counted(base, concept) as calls:
                latent = stock(patched, tiny.conditioning(1), tiny.conditioning(2), tiny.latent(), CONTROL,
                               "dpmpp_2m", steps=steps)
            full = latent if full is None else full
            change = float((latent - full).square().mean().sqrt() / full.square().mean().sqrt())
            lines.append(f"| {name} | {sum(rows for _, rows in calls)} | {change:.3f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=1000, help="samples a training seed")
    parser.add_argument("--steps", type=int, default=25, help="steps of a run")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "miniature" / "cache",
                        help="where the miniature keeps its trained models")
    args = parser.parse_args()
    folders = sorted(args.cache.glob("seed*"))
    if not folders:
        parser.exit(3, f"No trained models in {args.cache}; run `python -m benchmarks.miniature` first.\n")
    goal = reference(load(args.cache, CLASSIFIER), 10_000, args.samples)
    outcomes = [of_seed(folder, goal, args.samples, args.steps, i) for i, folder in enumerate(folders)]
    text = (f"# Fewer forward passes\n\n`python benchmarks/skipping.py`: GCFG in miniature (concept {CONCEPT}, control "
            f"{CONTROL}, prompt: colour), {args.steps} steps of DPM-Solver++(2M), {args.samples} samples for each of "
            f"{len(folders)} training seeds; mean ± standard deviation over the seeds. Floor of the distance: "
            f"{goal.floor[SEEN]:.2f}.\n\n{table(outcomes)}\n")
    host = find_host()
    if host is not None:
        text += ("\nOn a tiny random UNet in ComfyUI (nothing learned, so guidances change fast):\n\n"
                 f"{host_table(host, args.steps)}\n")
    (Path(__file__).parent / "SKIPPING.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
