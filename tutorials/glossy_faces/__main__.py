"""``python -m tutorials.glossy_faces``: a concept model from 76 glossy faces, in minutes on a CPU.

Writes the small genuine SD1.5 checkpoint of benchmarks/pictures (300 MB, once), then does what ``python -m gcfg train
tutorials/glossy_faces/train.toml`` does. Options are those of that command, and --output, where all of it is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pictures import expand
from gcfg.__main__ import main as gcfg
from gcfg.nulltext.formats import checkpoint

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "out"


def main(arguments: list[str] | None = None) -> int:
    """Write the checkpoint, train, or go on; the exit code of ``gcfg``."""
    parser = argparse.ArgumentParser("tutorials.glossy_faces", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUT, help="folder of the checkpoint and the run (default: out)")
    own, others = parser.parse_known_args(arguments)
    base = own.output / Path(expand.FILES["base"]).name
    if not base.is_file():
        print(f"writing {base}", flush=True)
        tensors, metadata = expand.contents("base")
        checkpoint.write(base, tensors, metadata | {"credit": expand.CREDIT})
    return gcfg(["train", str(HERE / "train.toml"), "--checkpoint", str(base), "--output", str(own.output), *others])


if __name__ == "__main__":
    sys.exit(main())
