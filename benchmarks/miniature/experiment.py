"""Train, sample and score everything for one training seed, resumable: what the cache holds is not done again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from gcfg.miniature import make
from gcfg.miniature.evaluate import SEEN, UNSEEN, Reference, pictures_for, reference, requests, score
from gcfg.miniature.metrics import Classifier
from gcfg.miniature.model import Denoiser
from gcfg.miniature.recipes import gcfg
from gcfg.terminal import ProgressBar

from .diagnosis import drift_table, guidance_table
from .methods import Method, every_method

REAL = 10_000
"""Real pictures behind the moments that samples are compared with."""


def run_seed(cache: Path, seed: int, samples: int) -> Path:
    """Everything for one training seed; returns the file of its results."""
    torch.set_num_threads(1)  # seeds run side by side; sums in one thread are the same everywhere
    models = make.denoisers(cache / f"seed{seed}", seed, lambda label: ProgressBar(f"seed {seed} {label}", False))
    results = cache / f"results{seed}.json"
    done = json.loads(results.read_text()) if results.is_file() else {}
    goal, methods = reference(make.classifier(cache, ProgressBar), REAL, samples), every_method()
    bar = ProgressBar(f"seed {seed} methods", False)
    for i, method in enumerate(methods):
        key = f"{method.key}, {samples}"
        if key not in done:
            done[key] = measure(models, method, goal, samples, seed)
            write(done, results)
        bar(i + 1, len(methods))
    done["diagnosis"] = diagnose(models, goal.classifier, seed)
    done["floor"] = dict(goal.floor)
    write(done, results)
    return results


def write(done: dict, path: Path) -> None:
    """Write results as JSON, under their final name only once complete."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(done, indent=1))
    part.replace(path)


def measure(models: dict[str, Denoiser], method: Method, goal: Reference, samples: int, seed: int) -> dict[str, dict]:
    """Scores of one method by kind of request; all methods of a seed get the same requests and noise."""
    generator, scores = torch.Generator().manual_seed(80_000 + seed), {}
    for kind in (SEEN, UNSEEN):
        attributes = requests(samples, kind, generator)
        pictures = pictures_for(models, method.recipe, attributes, method.prompt, seed)
        scores[kind] = asdict(score(pictures, attributes, kind, goal))
    return scores


def diagnose(models: dict[str, Denoiser], judge: Classifier, seed: int, samples: int = 250) -> dict[str, list]:
    """Guidance over noise levels along GCFG runs, for seen and unseen colours, and the drift of the tuned model."""
    generator = torch.Generator().manual_seed(90_000 + seed)
    asked = {kind: requests(samples, kind, generator) for kind in (SEEN, UNSEEN)}
    tables = {kind: guidance_table(models, judge, gcfg(1.0, 2.0), attributes, "colour", seed)
              for kind, attributes in asked.items()}
    return {**tables, "drift": drift_table(models, asked[SEEN], "colour", seed)}
