"""Teach a model one thing from a few pictures, with the settings of a TOML file; go on if it was begun before.

The settings are those of the nodes Subject Images and Train Subject, under the same names ('run_name' is the name of
the new word); 'checkpoint' names the file of the base model. Needs ComfyUI on this machine, into whose model folders
the embedding and the LoRA are written, or into those of 'models'. On several GPUs:
torchrun --nproc-per-node 4 -m gcfg subject run.toml.
"""

from __future__ import annotations

import argparse

from .train import add_arguments, launch

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> None:
    """The verb ``subject``; see ``train.run``."""
    from .training.subject_settings import SubjectSettings

    launch(arguments, SubjectSettings, "train_subject")
