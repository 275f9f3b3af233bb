"""Kaldi archives: matrices by utterance in an .ark, or named by the lines of an .scp. Text archives and pipes are not read.

A matrix is stored as its type, sizes and numbers; compressed ones (CM, CM2, CM3) hold 8 or 16 bits each between the least
and the largest value of the matrix or of a column (Kaldi, compressed-matrix.h).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.arrays import ArrayHeader
from toc_cli.io.features.raw import RawSource
from toc_cli.io.features.source import ArrayRows, ArraySource, Opened, Reader, Source
from toc_cli.io.names import printable

ENTRY_LIMIT = 10_000_000
KEY_LIMIT = 4096
"""Bytes of an utterance's name."""
DTYPES = {b"F": "<f4", b"D": "<f8"}
COMPRESSED = {b"CM ": 0, b"CM2": 2, b"CM3": 1}
"""Bytes of a number; the first kind has one byte and 8 bytes a column."""


class CompressedSource(Source):
    """A compressed matrix: decoded whole, since utterances are short."""

    def __init__(self, path: Path, offset: int, kind: bytes, header: tuple[float, float, int, int]) -> None:
        self.path, self.offset, self.kind = path, offset, kind
        self.least, self.range, rows, columns = header
        self.shape, self.dtype = (rows, columns), np.dtype(np.float32)

    @property
    def stored(self) -> int:
        """Bytes after the header."""
        rows, columns = self.shape
        return columns * 8 + rows * columns if self.kind == b"CM " else rows * columns * COMPRESSED[self.kind]

    def reader(self, axis: int, opened: Opened) -> Reader:
        file = opened.get(("raw", self.path), lambda: open(self.path, "rb", buffering=0))  # noqa: SIM115 (closed by the pass)
        file.seek(self.offset)
        data = file.read(self.stored)
        if len(data) < self.stored:
            raise InputError(f"{printable(self.path)} became shorter while it was read.")
        return ArrayRows(ArraySource(self.decoded(data)), axis)

    def storage(self, axis: int) -> tuple[tuple[int, ...], int]:
        return (1,), self.shape[0] * self.shape[1] * 4

    def decoded(self, data: bytes) -> np.ndarray:
        """The matrix (rows, columns) float32."""
        rows, columns = self.shape
        if self.kind == b"CM2":
            return np.float32(self.least) + np.frombuffer(data, "<u2").reshape(rows, columns) * np.float32(
                self.range / 65535
            )
        if self.kind == b"CM3":
            return np.float32(self.least) + np.frombuffer(data, "u1").reshape(rows, columns) * np.float32(
                self.range / 255
            )
        marks = np.frombuffer(data[: columns * 8], "<u2").reshape(columns, 4).astype(np.float32)
        p0, p25, p75, p100 = (np.float32(self.least) + marks * np.float32(self.range / 65535)).T
        values = np.frombuffer(data[columns * 8 :], "u1").reshape(columns, rows).T.astype(np.float32)
        low = p0 + (p25 - p0) * values / 64
        middle = p25 + (p75 - p25) * (values - 64) / 128
        high = p75 + (p100 - p75) * (values - 192) / 63
        return np.where(values <= 64, low, np.where(values <= 192, middle, high)).astype(np.float32)


def ark_sources(path: Path) -> dict[str, Source]:
    """The matrices of an archive by utterance."""
    found: dict[str, Source] = {}
    size = path.stat().st_size
    with open(path, "rb") as file:
        while file.tell() < size:
            key = _key(file, path)
            source, end = _matrix(file, path, size)
            if key in found or len(found) > ENTRY_LIMIT:
                raise InputError(f"{printable(path)} holds {printable(key)} twice, or too many utterances.")
            if source is not None:
                found[key] = source
            file.seek(end)
    return found


def scp_sources(path: Path) -> dict[str, Source]:
    """The matrices that the lines `utterance archive:offset` of a list name, from here or from the list's folder."""
    found: dict[str, Source] = {}
    archive: IO[bytes] | None = None
    name, size = Path(), 0
    try:
        for line in path.read_text("utf-8").splitlines():
            key, _, place = line.strip().partition(" ")
            where, _, offset = place.strip().rpartition(":")
            if (
                not key
                or place.strip().endswith("|")
                or place.strip().endswith("]")
                or not offset.isdigit()
                or not where
            ):
                raise InputError(
                    f"{printable(path)}: {printable(line, 80)!r} is not `utterance archive:offset`.",
                    "Commands and ranges are not read: copy-feats scp:in.scp ark,scp:out.ark,out.scp writes them out.",
                )
            target = Path(where) if os.path.exists(where) or os.path.isabs(where) else path.parent / where
            if archive is None or target != name:
                if archive is not None:
                    archive.close()
                if not target.is_file():
                    raise InputError(f"{printable(path)} names {printable(target)}, which is not there.")
                archive, name, size = open(target, "rb"), target, target.stat().st_size  # noqa: SIM115 (closed below)
            archive.seek(int(offset))
            source, _ = _matrix(archive, target, size)
            if source is not None:
                found[key] = source
    except (OSError, UnicodeDecodeError, OverflowError):
        raise InputError(f"{printable(path)} cannot be read as a list of utterances.") from None
    finally:
        if archive is not None:
            archive.close()
    return found


def _key(file: IO[bytes], path: Path) -> str:
    key = bytearray()
    while (byte := file.read(1)) not in (b" ", b""):
        key += byte
        if len(key) > KEY_LIMIT:
            break
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name or len(key) > KEY_LIMIT:
        raise InputError(f"{printable(path)} is damaged: an utterance of its archive has no name.")
    return name


def _matrix(file: IO[bytes], path: Path, size: int) -> tuple[Source | None, int]:
    """The matrix (a vector is one row) that starts here, None for integers, and where it ends."""
    start = file.tell()
    mark = file.read(5)
    kind = mark[2:5]
    shown = printable(path)
    if mark[:2] != b"\0B":
        raise InputError(
            f"{shown} is a text archive of Kaldi, or damaged.",
            "Write it in binary: copy-feats ark,t:in.ark ark:out.ark.",
        )
    if kind in COMPRESSED:
        if kind != b"CM ":
            file.read(1)
        least, span, rows, columns = struct.unpack("<ffii", _exact(file, 16, path))
        if rows < 0 or columns < 0:
            raise InputError(f"{shown} is damaged: a matrix of {rows} x {columns}.")
        compressed = CompressedSource(path, file.tell(), kind, (least, span, rows, columns))
        end = file.tell() + compressed.stored
        source: Source | None = compressed
    elif kind[:1] in DTYPES and kind[1:] in (b"M ", b"V "):
        sizes = [_length(file, path) for _ in range(2 if kind[1:] == b"M " else 1)]
        shape = tuple(sizes) if len(sizes) == 2 else (1, *sizes)
        header = ArrayHeader(shape, np.dtype(DTYPES[kind[:1]]), False, 0)
        source = RawSource(path, file.tell(), header)
        end = file.tell() + header.nbytes
    else:
        raise InputError(f"{shown} holds {mark[2:]!r} at byte {start:,}, which is no matrix of Kaldi.")
    if end > size:
        raise InputError(f"{shown} is truncated at byte {start:,}.", "Copy or write it again.")
    return source, end


def _length(file: IO[bytes], path: Path) -> int:
    marked = _exact(file, 5, path)
    value = struct.unpack("<i", marked[1:])[0]
    if marked[0] != 4 or value < 0:
        raise InputError(f"{printable(path)} is damaged: a matrix has a size of {value}.")
    return int(value)


def _exact(file: IO[bytes], count: int, path: Path) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise InputError(f"{printable(path)} is truncated.", "Copy or write it again.")
    return data
