"""What is removed of a codebook: one value, whichever axis it goes along, that every form of `--emit` is made from.

`emit.Dimensions` (kept dimensions, or a rotation), `recode.Recoding` (codes, with their map of ids) and `levels.Levels` are cuts.
"""

from __future__ import annotations

from typing import Protocol

from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families.base import Codebook, Mode


class Cut(Protocol):
    """Edits a file: the tables, the layers on both of their axes, and what follows them (averages, moments, counters)."""

    def edits(self, ckpt: Checkpoint, book: Codebook, mode: Mode, on: Edits) -> Edits:
        """What `mode` changes for this cut of `book`, upon what was changed `on` the file before.

        UsageError where the mode cannot be written for it.
        """
        ...
