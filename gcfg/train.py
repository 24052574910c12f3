"""Train a concept model on a folder of pictures, with the settings of a TOML file; go on if it was begun before.

The settings are those of the node Train Concept Model, under the same names, and those of Concept Image Folder;
'checkpoint' names the file of the base model. Needs ComfyUI on this machine, whose models it trains. On several GPUs:
torchrun --nproc-per-node 4 -m gcfg train run.toml. Ctrl-C saves and stops.
"""

from __future__ import annotations

import argparse
import signal
from dataclasses import replace
from pathlib import Path

from . import comfyui, environment
from .terminal import ProgressBar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", type=Path, help="a TOML file, such as the config.toml of a run's folder")
    parser.add_argument("--comfyui", default="", help="folder of ComfyUI (default: found)")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")


def run(arguments: argparse.Namespace) -> None:
    """The verb ``train``.

    Raises:
        ValueError: settings, pictures or a base model that cannot be used; a loss that is not finite.
        OSError: no ComfyUI, no file, or no space.
        RuntimeError: out of memory.
        KeyboardInterrupt: after the state was saved.
    """
    from .training.settings import Settings

    launch(arguments, Settings, "train")


def launch(arguments: argparse.Namespace, form: type, trainer: str) -> None:
    """Run one of the trainers of ``host.training.command_line`` with settings of a form, in a host started for it."""
    from .training import settings as files

    settings = located(files.read(arguments.settings, form), arguments.settings.resolve().parent)
    if not settings.checkpoint or not Path(settings.checkpoint).is_file():
        raise FileNotFoundError(f"the base model '{settings.checkpoint}' is not there; 'checkpoint' in "
                                f"{arguments.settings.name} must name the file of a checkpoint.")
    host = comfyui.find(arguments.comfyui or settings.comfyui)
    import torch

    cuda = torch.cuda.is_available() and not arguments.cpu
    if cuda:
        torch.cuda.set_device(environment.local_rank())
    comfyui.start(host, cpu=not cuda)
    from .host.training import command_line
    from .training import distributed

    with distributed.joined(cuda), Interruption() as interruption:
        getattr(command_line, trainer)(settings, interruption, ProgressBar if distributed.rank() == 0 else None)
        if interruption.asked:
            raise KeyboardInterrupt


def located(settings, folder: Path):
    """Settings whose relative paths are seen from the folder of their file."""
    def absolute(paths: str) -> str:
        if (folder / Path(paths).expanduser()).exists():
            return str((folder / Path(paths).expanduser()).resolve())
        return ",".join(str((folder / Path(path.strip()).expanduser()).resolve()) for path in paths.split(","))
    return replace(settings, **{name: absolute(getattr(settings, name)) for name in settings.PATHS
                                if getattr(settings, name)})


class Interruption:
    """Within, the first Ctrl-C is noted in ``asked``; the second one interrupts as ever."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> Interruption:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
