"""The command line: ``gcfg <verb>``, or ``python -m gcfg <verb>``."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

VERBS = {
    "demo": ("demo", "draw the methods side by side with tiny models that come with the package"),
    "subject": ("subject", "teach a model one thing from a few pictures (needs ComfyUI)"),
    "train": ("train", "train a concept model on a folder of pictures (needs ComfyUI)"),
    "words": ("words", "tune new words of several things so that they are told apart (needs ComfyUI)"),
}
"""By verb: the module with ``add_arguments(parser)`` and ``run(arguments)``, and what it does in a line."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb, or show the help without one. Exit codes: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser("gcfg", description="GCFG: multi-guidance sampling on the command line.")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="verb")
    for verb, (module, about) in VERBS.items():
        tool = import_module(f".{module}", __package__)
        sub = verbs.add_parser(verb, help=about, description=tool.__doc__,
                               formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        tool.add_arguments(sub)
        sub.set_defaults(run=tool.run)
    chosen = parser.parse_args(arguments)
    if chosen.verb is None:
        parser.print_help()
        return 0
    try:
        chosen.run(chosen)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except ModuleNotFoundError as error:
        return _say(f'gcfg {chosen.verb}: {error}; install what it needs: pip install "gcfg[demo]"', 1)
    except (OSError, ValueError) as error:  # what was given cannot be used
        return _say(f"gcfg {chosen.verb}: {_sentence(error)}", 2)
    except (ImportError, RuntimeError) as error:
        return _say(f"gcfg {chosen.verb}: {error}", 1)
    return 0


def _sentence(error: Exception) -> str:
    """The message; of the operating system's errors, what happened to which file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{Path(error.filename).absolute()}: {error.strerror}"
    return str(getattr(error, "strerror", None) or error)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
