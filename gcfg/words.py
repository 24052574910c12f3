"""Tune new words of several things so that they are told apart, with the settings of a TOML file; or go on with it.

The settings are those of the node Tune Concept Words, under the same names, and: 'folders' (pictures of each thing) and
'mask_folders', separated by commas; 'checkpoint' of the base model; 'vision' and 'clip_file', the files of CLIP-L's
vision model and of its full text encoder. Needs ComfyUI on this machine, into whose embeddings the words are written.
"""

from __future__ import annotations

import argparse

from .train import add_arguments, launch

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> None:
    """The verb ``words``; see ``train.run``."""
    from .training.data.words import WordSettings

    launch(arguments, WordSettings, "tune_words")
