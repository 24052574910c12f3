"""What every step of a run came to: in memory, as a table, as a curve, and for TensorBoard where that is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from .folder import COLUMNS, RunFolder


class Recorder:
    """The history of a run.

    Args:
        folder: where it is written.
        active: False keeps it in memory only, for all processes but the first.
        tensorboard: also write events to the folder ``tensorboard`` if that package is installed.
    """

    def __init__(self, folder: RunFolder, active: bool, tensorboard: bool):
        self.folder, self.active, self.rows = folder, active, []
        self._board = None
        self._wanted = tensorboard and active

    def begin(self, rows: Iterable[list[float]]) -> None:
        """Start with the rows of a state, none for a new run."""
        self.rows = list(rows)
        if self.active:
            self.folder.write_table(self.table())

    def add(self, row: list[float]) -> None:
        """One more row, see ``COLUMNS``."""
        self.rows.append(row)
        if self.active:
            self.folder.append(row)
        if self._wanted:
            self._to_board(row)

    def table(self) -> Tensor:
        """All rows, (steps, columns) float64."""
        return torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS))

    def draw(self) -> None:
        """The curve; it is no reason to end a run that it cannot be drawn."""
        try:
            self.folder.write_curve(self.table())
        except ImportError:
            return
        except Exception as error:
            logging.warning("GCFG: loss.png could not be drawn (%s: %s); loss.csv has all values.",
                            type(error).__name__, error)

    def _to_board(self, row: list[float]) -> None:
        try:
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=int(row[0]))
            for name, value in zip(COLUMNS[1:], row[1:], strict=True):
                if value == value:
                    self._board.add_scalar(name, value, int(row[0]))
        except ImportError:
            self._wanted = False
        except Exception as error:
            self._wanted = False
            logging.warning("GCFG: no more events for TensorBoard (%s: %s).", type(error).__name__, error)

    def close(self) -> None:
        """Write out what TensorBoard has not got yet."""
        if self._board is not None:
            self._board.close()
