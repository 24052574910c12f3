"""Draw base, fine-tune and GCFG side by side, with tiny models on 16 x 16 pictures; print a table of scores.

The base knows flat shapes in five colours; the concept is lit rings on a dark ground, never violet. Asked for: the
concept in each colour. Needs no ComfyUI and under a minute on two cores.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from pathlib import Path

from .terminal import ProgressBar, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("gcfg_demo.png"), help="where the picture goes")
    parser.add_argument("--count", type=int, default=120, help="pictures a method for the table")
    parser.add_argument("--seed", type=int, default=0, help="seed of the starting noise, and of the training")
    parser.add_argument("--train", action="store_true", help="train the tiny models again first (about six minutes)")
    parser.add_argument("--models", type=Path, help="folder of the models; with --train where they go "
                        "(default: those of the package, or ./gcfg_demo_models with --train)")


def run(arguments: argparse.Namespace) -> None:
    """The verb ``demo``.

    Raises:
        ValueError: an argument makes no sense.
        OSError: the models are missing, or the picture cannot be written.
    """
    if arguments.count < 20:
        raise ValueError(f"--count must be at least 20, not {arguments.count}: fewer pictures make no statistics.")
    if not arguments.out.resolve().parent.is_dir():
        raise FileNotFoundError(f"the folder of --out does not exist: {arguments.out.parent}")
    if arguments.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"):
        raise ValueError(f"--out must name a picture, such as gcfg_demo.png, not {arguments.out.name}.")
    start = time.monotonic()
    import torch  # only once the arguments are right: it takes seconds to load

    from .miniature import make, show, store

    threads, folder = torch.get_num_threads(), arguments.models or (
        Path("gcfg_demo_models") if arguments.train else store.SHIPPED)
    torch.set_num_threads(1)  # tiny layers: a second thread waits more than it works, above all on a busy machine
    try:
        if arguments.train:
            make.denoisers(folder, arguments.seed, ProgressBar, fresh=True)
            make.classifier(folder, ProgressBar, fresh=True)
        models, classifier = store.load_all(folder)
        rows = show.compare(models, classifier, arguments.count, arguments.seed, ProgressBar("sampling"))
    finally:
        torch.set_num_threads(threads)
    print(table(show.HEAD, [row.cells() for row in rows]))
    print(show.LEGEND)
    print("\n" + textwrap.fill(show.conclusion(rows), 100))
    show.draw_grid(rows, arguments.out)
    print(f"\n{arguments.out} written; {time.monotonic() - start:.0f} s")

