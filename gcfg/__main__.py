"""The command line: ``python -m gcfg <verb>``."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

VERBS = {
    "demo": ("gcfg.demo", "draw the methods side by side with tiny models that come with the package"),
    "train": ("gcfg.train", "train a concept model on a folder of pictures (needs ComfyUI)"),
}
"""By verb: the module with ``add_arguments(parser)`` and ``run(arguments)``, and what it does in a line."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser("python -m gcfg", description="GCFG: multi-guidance sampling on the command line.")
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True, metavar="verb")
    for verb, (module, about) in VERBS.items():
        tool = import_module(module)
        sub = verbs.add_parser(verb, help=about, description=tool.__doc__,
                               formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        tool.add_arguments(sub)
        sub.set_defaults(run=tool.run)
    chosen = parser.parse_args(arguments)
    try:
        chosen.run(chosen)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"gcfg {chosen.verb}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
