"""A table that a program already holds: no file, no copy to edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.stored_types import WHOLE

if TYPE_CHECKING:
    import torch


class MemoryTable(Checkpoint):
    """One tensor or array under the key "", read as the same array in .npy is."""

    container = "array in memory"

    def __init__(self, table: torch.Tensor | np.ndarray) -> None:
        import torch

        super().__init__(Path("codebook"))
        self._table = (
            torch.from_numpy(np.ascontiguousarray(table)) if isinstance(table, np.ndarray) else table.detach().cpu()
        )
        stored = str(self._table.dtype).removeprefix("torch.")
        if stored in WHOLE:
            raise InputError(f"The table {tuple(table.shape)} holds {stored}: codes are real numbers.")
        self.infos[""] = TensorInfo((), "", tuple(self._table.shape), stored)
        self.read_only = "an array in memory is no file that could be copied"

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        return self._table

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        raise AssertionError("it is read-only")
