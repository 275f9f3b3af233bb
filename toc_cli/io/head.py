"""What is cheaply known of a file or a folder: its first bytes, the names in a zip archive or a folder. No data is read."""

from __future__ import annotations

import io
import itertools
import os
import stat
import zipfile
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

from toc_cli.errors import InputError
from toc_cli.io.names import printable

START = 4096
"""Bytes that are read of a file."""
ENTRY_LIMIT = 100_000
"""Names that are read of a folder or an archive."""


class Head:
    """A path that exists, before anyone knows what it is. InputError for what is no file, empty, or a stand-in for a file."""

    base = 0
    """Where it begins in the file of that path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = printable(path)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise InputError(f"{self.shown} does not exist.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.shown} cannot be read: {_reason(error)}.") from None
        self.size = status.st_size
        self.is_folder = stat.S_ISDIR(status.st_mode)
        self.start = b""
        if self.is_folder:
            return
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{self.shown} is not a regular file.")
        try:
            with self.open() as file:
                self.start = file.read(START)
        except OSError as error:
            raise InputError(f"{self.shown} cannot be read: {_reason(error)}.") from None
        self._refuse_stand_ins()

    def open(self) -> IO[bytes]:
        """The file, to be read from its first byte."""
        return open(self.path, "rb")

    def _refuse_stand_ins(self) -> None:
        words = self.start[:512].lstrip().lower()
        if not self.start:
            raise InputError(f"{self.shown} is empty (0 bytes).", "Download or save it again.")
        if self.start.startswith(b"version https://git-lfs.github.com/spec/"):
            raise InputError(
                f"{self.shown} is a Git LFS pointer, not the file itself.", "Fetch it with `git lfs pull`."
            )
        if words.startswith((b"<!doctype", b"<html")):
            raise InputError(f"{self.shown} is a web page, not a checkpoint.", "Download the file itself.")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def is_zip(self) -> bool:
        """Whether it is a zip archive."""
        return self.start.startswith(b"PK\x03\x04")

    @cached_property
    def members(self) -> tuple[zipfile.ZipInfo, ...]:
        """The directory of a zip archive, () for anything else. InputError where it is cut off."""
        if not self.is_zip:
            return ()
        try:
            with self.open() as file, zipfile.ZipFile(file) as archive:
                return tuple(archive.infolist()[:ENTRY_LIMIT])
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise InputError(
                f"{self.shown} is truncated: its zip directory is missing or broken.", "Copy or download it again."
            ) from None

    @cached_property
    def entries(self) -> frozenset[str]:
        """The names in a zip archive, or in a folder."""
        if not self.is_folder:
            return frozenset(member.filename for member in self.members)
        try:
            with os.scandir(self.path) as listing:
                return frozenset(entry.name for entry in itertools.islice(listing, ENTRY_LIMIT))
        except OSError as error:
            raise InputError(f"{self.shown} cannot be read: {_reason(error)}.") from None


class Within(Head):
    """A file that lies whole inside of another: `size` bytes from the byte `base` on, called `shown` in messages."""

    def __init__(self, path: Path, base: int, size: int, shown: str) -> None:
        self.path, self.base, self.size, self.shown, self.is_folder = path, base, size, shown, False
        with self.open() as file:
            self.start = file.read(START)
        self._refuse_stand_ins()

    def open(self) -> IO[bytes]:
        return cast("IO[bytes]", io.BufferedReader(_Window(self.path, self.base, self.size)))


class _Window(io.RawIOBase):
    """The bytes of a file from one place to another, as a file that can only be read."""

    def __init__(self, path: Path, base: int, size: int) -> None:
        self._file, self._base, self._size, self._at = open(path, "rb", buffering=0), base, size, 0  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise ValueError("a place before the first byte")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        self._file.seek(self._base + self._at)
        got = self._file.readinto(view[:count]) or 0
        self._at += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


def _reason(error: Exception) -> str:
    return printable((isinstance(error, OSError) and error.strerror) or error)
