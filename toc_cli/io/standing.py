"""Files that must stay as they are while they are read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from toc_cli.errors import InputError
from toc_cli.io.names import printable

State = tuple[int, int, int]
"""Size, time of the last change, identity."""


class Standing:
    """How files stood when they were first noted."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self._states: dict[Path, State | None] = {}
        self.note(files)

    def note(self, files: Iterable[Path]) -> None:
        """Look at files that were not looked at before."""
        for path in files:
            if path not in self._states:
                self._states[path] = _state(path)

    def refuse_changes(self, files: Collection[Path] | None = None) -> None:
        """InputError for a file (of these, or of all) that is not as it was: what was read of it is of two states."""
        for path in self._states if files is None else files:
            if _state(path) != self._states[path]:
                raise InputError(
                    f"{printable(path)} changed while it was read.", "Run again when nothing writes to it any more."
                )


def _state(path: Path) -> State | None:
    """None where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
