"""A file whose failed writes are kept until they are asked for.

HDF5 and torch's zip writer do not survive a full disk: the first ends the process with a crash when it closes, the second
loses the reason. Both write through this instead, see every write succeed, and are told of nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast

Result = TypeVar("Result")


class GuardedFile(io.RawIOBase):
    """A new file, open for reading and writing. After the first failed write nothing more is written; `check` raises it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed by close)
        self._failure: OSError | None = None

    def check(self) -> None:
        """Raise the OSError of the first failed write, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _guarded(self, step: Callable[[], object], result: Result) -> Result:
        if self._failure is None:
            try:
                step()
            except OSError as error:
                self._failure = error
        return result

    def write(self, data: Any) -> int:
        """Claim to have written all of `data`."""
        view = memoryview(data).cast("B")
        return self._guarded(lambda: self._write_all(view), len(view))

    def _write_all(self, view: memoryview) -> None:
        while view:
            view = view[self._file.write(view) :]

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer, with zeros where nothing was written."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        return self._guarded(lambda: self._file.truncate(size), size or 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file at `path`; OSError at the end of the block if a write has failed in it."""
    with GuardedFile(path) as file:
        yield cast(IO[bytes], file)
        file.check()


class NewHdf5:
    """A new HDF5 file, `root`. Closed at the end of a `with` block: OSError if a write has failed in it."""

    def __init__(self, path: Path) -> None:
        import h5py

        self._guard = GuardedFile(path)
        self.root = h5py.File(self._guard, "w")

    def check(self) -> None:
        """OSError if a write has failed: after each piece of a long file, so that a full disk ends it early."""
        self._guard.check()

    def close(self) -> None:
        """Close the file, whatever its state; closing twice is fine."""
        try:
            self.root.close()
        finally:
            self._guard.close()

    def __enter__(self) -> NewHdf5:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            self.check()
        else:
            with suppress(OSError, RuntimeError):
                self.close()
