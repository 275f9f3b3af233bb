"""A table of numbers in text, as np.savetxt writes it: one row a line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

SIZE_LIMIT = 1 << 29
"""Bytes of text; numbers in memory take about a third."""


class TextFile(Checkpoint):
    """One table, under the key ""; float64."""

    container = "text"

    def __init__(self, path: Path) -> None:
        import numpy as np

        super().__init__(path)
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(f"{printable(path)} is a text of {path.stat().st_size:,} bytes.", "Save it with np.save.")
        try:
            with open(path, encoding="utf-8") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                first = next(line for line in file if line.partition("#")[0].strip())
                file.seek(0)
                self._rows = np.loadtxt(file, delimiter="," if "," in first else None, ndmin=2)
        except (ValueError, OSError, StopIteration, OverflowError, MemoryError) as error:
            raise InputError(f"{printable(path)} is no table of numbers: {printable(error)}.") from None
        self.infos[""] = TensorInfo((), "", self._rows.shape, "float64")
        self.files = (path,)
        self.read_only = "A table in text is read, not written."

    def get(self, key: str) -> torch.Tensor:
        import torch

        self.require(key)
        return torch.from_numpy(self._rows)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        return []
