"""The shipped example, as its user runs it."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from harness.find import PACK


@pytest.mark.slow
def test_the_shipped_example_learns_to_be_seen(host, tmp_path):
    """With fewer steps than it has: it says where the model lies, and its last preview shows what it has learned."""
    command = [sys.executable, "-m", "tutorials.glossy_faces", "--output", str(tmp_path), "--target-steps", "60"]
    done = subprocess.run([*command, "--comfyui", str(host), "--cpu"], cwd=PACK, text=True, capture_output=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=900)
    run = tmp_path / "glossy_faces"
    assert done.returncode == 0, done.stderr
    assert f"{run}/glossy_faces.safetensors is the concept model" in done.stdout and "0 files skipped" in done.stdout
    rows = list(csv.DictReader((run / "loss.csv").open()))
    held_out = [float(row["held_out_loss"]) for row in rows if row["held_out_loss"]]
    assert held_out[-1] < 0.7 * held_out[0]
    page = np.asarray(Image.open(run / "previews" / "step_00000060.jpg"), dtype=float)[32:]
    plain, concept, more = (page[:, 64 * k:64 * k + 64] for k in range(3))
    assert redness(more) > redness(plain) + 10.0  # the concept's faces are orange
    assert concept.shape == plain.shape and np.abs(concept - plain).mean() > 3.0


def redness(pictures):
    """By how much red exceeds green in the skin of yellow and orange faces; ground and glasses do not count."""
    red, green, blue = np.moveaxis(pictures, -1, 0)
    skin = (red > 200) & (blue < 140)
    return (red - green)[skin].mean()
