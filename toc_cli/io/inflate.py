"""Compressed files as a stream: gzip, zlib, bzip2, xz and lzma, with a bound on what comes out."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, cast

from toc_cli.errors import InputError
from toc_cli.io.names import printable

MARKS = {
    b"\x1f\x8b": "gzip", b"x\x01": "zlib", b"x^": "zlib", b"x\x9c": "zlib", b"x\xda": "zlib", b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz", b"]\x00\x00": "lzma", b'\x04"M\x18': "lz4",
}  # fmt: skip
"""First bytes of what joblib and others compress with."""
EXPANSION_LIMIT = 200
"""Times its size that a compressed file may take; numbers reach about 1.1, a bomb 1000."""
SMALL = 1 << 26
"""Bytes below which the expansion does not matter."""
DICTIONARY_LIMIT = 1 << 28
"""Bytes of memory that an xz or lzma file may ask its reader for."""
ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
BLOCK = 1 << 18


def compression(start: bytes) -> str:
    """The name of the compression of a file with these first bytes; "" for none of them."""
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "")


def _decoder(kind: str) -> Any:
    if kind in ("gzip", "zlib"):
        return zlib.decompressobj(47)  # either header
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(memlimit=DICTIONARY_LIMIT)


class Inflated(io.RawIOBase):
    """The decompressed bytes, forward only. InputError where they are more than `limit`."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__()
        self._path, self._kind = path, kind
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._decoder, self._pending = _decoder(kind), b""
        self._left = max(SMALL, EXPANSION_LIMIT * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._some(min(len(view), BLOCK)) if len(view) else b""
        view[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            raise InputError(f"{printable(self._path)} unpacks to more than a checkpoint would; refused as a bomb.")
        return len(data)

    def _some(self, count: int) -> bytes:
        """Up to `count` bytes, b"" at the end."""
        while True:
            if self._decoder.eof:  # the next member of a file in several
                rest = self._decoder.unused_data or self._file.read(BLOCK)
                if not rest.strip(b"\0"):
                    return b""
                self._decoder, self._pending = _decoder(self._kind), rest
            if not self._pending and (self._kind in ("gzip", "zlib") or self._decoder.needs_input):
                self._pending = self._file.read(BLOCK)
                if not self._pending:
                    raise EOFError("its compressed data ends early")
            data: bytes = self._decoder.decompress(self._pending, count)
            self._pending = self._decoder.unconsumed_tail if self._kind in ("gzip", "zlib") else b""
            if data:
                return data

    def close(self) -> None:
        self._file.close()
        super().close()


def inflated(path: Path, start: bytes) -> IO[bytes]:
    """A stream of a file's bytes, decompressed where its first bytes `start` name a compression.

    InputError for lz4, which Python itself does not read.
    """
    kind = compression(start)
    if kind == "lz4":
        raise InputError(f"{printable(path)} is compressed with lz4.", "Unpack it with `lz4 -d` first.")
    if not kind:
        return open(path, "rb")
    return cast("IO[bytes]", io.BufferedReader(Inflated(path, kind), BLOCK))


def first_bytes(path: Path, start: bytes, count: int = 64) -> bytes:
    """The first bytes of a file after decompression; b"" where they cannot be had."""
    if not compression(start):
        return start[:count]
    try:
        with inflated(path, start) as file:
            return file.read(count)
    except (InputError, *ERRORS):
        return b""
