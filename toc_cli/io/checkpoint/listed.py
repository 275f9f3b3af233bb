"""A checkpoint whose arrays are places in its file: listed from a header, read one by one, never written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.strided import Strided
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch


class Listed(Checkpoint):
    """A reader fills it with `add`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.files = (path,)
        self.read_only = f"A {self.container} file is read, not written."
        self._arrays: dict[str, Strided] = {}

    def add(self, section: tuple[str, ...], name: str, array: Strided) -> None:
        """List an array. InputError where its name stands twice."""
        storage = array.storage.key if array.storage.nbytes else None
        info = TensorInfo(section, name, array.shape, array.stored, storage)
        if info.key in self.infos:
            raise InputError(f"{printable(self.path)} has two tensors of the name {printable(info.key)!r}.")
        self.infos[info.key] = info
        self._arrays[info.key] = array

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        try:
            return self._arrays[key].tensor()
        except InputError as error:
            raise InputError(f"{printable(self.path)}: {printable(key)}: {error.what}", error.hint) from None
        except (OSError, EOFError) as error:
            raise InputError(f"{printable(self.path)}: {printable(key)} cannot be read: {printable(error)}.") from None

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        return []
