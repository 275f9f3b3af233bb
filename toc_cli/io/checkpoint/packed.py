"""Archives around one weights file: Keras 3 (`model.weights.h5` in a zip) and NeMo (`model_weights.ckpt` in a tar).

The one file is copied out, to a folder that goes with the checkpoint, and read as what it is.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.containers import open_file
from toc_cli.io.inflate import EXPANSION_LIMIT, SMALL
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

ERRORS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, OSError, EOFError, KeyError, ValueError, RuntimeError)


class Packed(Checkpoint):
    """The checkpoint inside an archive."""

    def __init__(
        self, path: Path, name: str, opened: Callable[[], AbstractContextManager[tuple[IO[bytes], int]]]
    ) -> None:
        super().__init__(path)
        folder = tempfile.mkdtemp(prefix="toc-")
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        inner = Path(folder) / name
        try:
            with opened() as (file, size), open(inner, "wb") as out:
                if size > max(SMALL, EXPANSION_LIMIT * path.stat().st_size):
                    raise InputError(f"{printable(path)} unpacks to {size:,} bytes; refused as a bomb.")
                shutil.copyfileobj(file, out, 1 << 20)
        except ERRORS as error:
            raise InputError(
                f"{printable(path)} is truncated or damaged: {printable(error)}.", "Copy or download it again."
            ) from None
        try:
            self._inner = open_file(inner)
        except InputError as error:
            raise InputError(error.what.replace(printable(inner), f"{printable(path)}: {name}"), error.hint) from None
        self.infos, self.values = self._inner.infos, self._inner.values
        self.files = (path,)
        self.read_only = f"A {self.container} archive is read, not written."

    def get(self, key: str) -> torch.Tensor:
        return self._inner.get(key)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        return []

    def close(self) -> None:
        self._inner.close()
        self._remove()


class KerasFile(Packed):
    """A .keras archive."""

    container = "keras"

    def __init__(self, path: Path) -> None:
        @contextmanager
        def opened() -> Iterator[tuple[IO[bytes], int]]:
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
                yield file, archive.getinfo("model.weights.h5").file_size

        super().__init__(path, "model.weights.h5", opened)


class NemoFile(Packed):
    """A .nemo archive: a tar, compressed or not."""

    container = "nemo"

    def __init__(self, path: Path) -> None:
        @contextmanager
        def opened() -> Iterator[tuple[IO[bytes], int]]:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).name == "model_weights.ckpt":
                        file = archive.extractfile(member)
                        assert file is not None
                        with file:
                            yield file, member.size
                        return
            raise InputError(
                f"{printable(path)} is a tar archive without model_weights.ckpt.", "Unpack it with tar xf."
            )

        super().__init__(path, "model_weights.ckpt", opened)
