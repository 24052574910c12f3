"""Train a concept model on a folder of pictures, with the settings of a TOML file; go on if it was begun before.

The settings are those of the node Train Concept Model, under the same names, and those of Concept Image Folder;
'checkpoint' names the file of the base model. Needs ComfyUI on this machine, whose models it trains. On several GPUs:
torchrun --nproc-per-node 4 -m gcfg train run.toml. Ctrl-C or SIGTERM saves and stops; the same command then goes on.
The config.toml in a run's folder goes on with that run wherever the folder lies.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from . import comfyui, environment
from .terminal import ProgressBar

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", type=Path, help="a TOML file, such as the config.toml of a run's folder")
    parser.add_argument("--checkpoint", default="", help="file of the base model, in place of that of the settings")
    parser.add_argument("--folder", default="", help="folder of the pictures, in place of that of the settings")
    parser.add_argument("--output", default="", help="folder of the run's folder, in place of that of the settings")
    parser.add_argument("--target-steps", type=int, default=0, help="steps in all, in place of those of the settings")
    parser.add_argument("--comfyui", default="", help="folder of ComfyUI (default: found)")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")


def run(arguments: argparse.Namespace) -> None:
    """The verb ``train``.

    Raises:
        ValueError: settings, pictures or a base model that cannot be used; a loss that is not finite.
        OSError: no ComfyUI, no file, or no space.
        RuntimeError: out of memory, or another process is at work on the run.
        KeyboardInterrupt: after the state was saved.
    """
    from .training.settings import Settings

    launch(arguments, Settings, "train")


def launch(arguments: argparse.Namespace, form: type, trainer: str) -> None:
    """Run one of the trainers of ``host.training.command_line`` with settings of a form, in a host started for it."""
    from .training import settings_file

    here = arguments.settings.resolve().parent
    settings = located(settings_file.read(arguments.settings, form), here)
    named = {name: str(Path(path).expanduser().resolve()) for name in ("checkpoint", "folder", "output")
             if (path := getattr(arguments, name))}
    goes_on = (here / "states").is_dir()
    named |= {"output": str(here.parent)} if goes_on else {}
    settings = replace(settings, **named, target_steps=arguments.target_steps or settings.target_steps)
    if not settings.checkpoint or not Path(settings.checkpoint).is_file():
        raise FileNotFoundError(f"the base model '{settings.checkpoint}' is not there; name the file of a checkpoint "
                                f"with --checkpoint, or as 'checkpoint' in {arguments.settings.name}.")
    host = comfyui.find(arguments.comfyui or settings.comfyui)
    import torch

    cuda = torch.cuda.is_available() and not arguments.cpu
    if cuda:
        torch.cuda.set_device(environment.local_rank())
    with Interruption() as interruption:
        comfyui.start(host, cpu=not cuda)
        from .host.training import command_line
        from .training.run import distributed

        with distributed.joined(cuda):
            first = distributed.rank() == 0
            made = getattr(command_line, trainer)(settings, interruption, ProgressBar if first else None,
                                                  here if goes_on else None)
            if interruption.asked:
                raise KeyboardInterrupt
            if first:
                print(made)


def located(settings, folder: Path):
    """Settings whose relative paths are seen from the folder of their file."""
    def absolute(paths: str) -> str:
        if (folder / Path(paths).expanduser()).exists():
            return str((folder / Path(paths).expanduser()).resolve())
        return ",".join(str((folder / Path(path.strip()).expanduser()).resolve()) for path in paths.split(","))
    return replace(settings, **{name: absolute(getattr(settings, name)) for name in settings.PATHS
                                if getattr(settings, name)})


class Interruption:
    """Within, Ctrl-C and signals that ask a process to end interrupt at once, or are noted while it is ``patient``.

    Attributes:
        patient: True while a run would lose something: then the first signal sets ``asked``, and a Ctrl-C more than a
            second later interrupts as ever (one Ctrl-C reaches the processes of torchrun twice).
        asked: whether to save and stop.
    """

    def __init__(self):
        self.asked = self.patient = False
        self._at = 0.0

    def __enter__(self) -> Interruption:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if not self.patient:
            raise KeyboardInterrupt
        if self.asked:
            if number == signal.SIGINT and time.monotonic() - self._at > 1.0:
                raise KeyboardInterrupt
            return
        self.asked, self._at = True, time.monotonic()
        print("saving after this step, then stopping", file=sys.stderr, flush=True)
