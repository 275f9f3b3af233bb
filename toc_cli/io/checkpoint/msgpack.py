"""Flax checkpoints in msgpack: nested maps whose arrays are extensions of type 1, (shape, type, bytes) in msgpack again.

The format is walked here, so that no array is read for the listing (flax.serialization.msgpack_serialize writes it).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.listed import Listed
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.checkpoint.strided import Storage, file_bytes, row_major, strided
from toc_cli.io.names import printable

DEPTH_LIMIT = 32
ARRAY_EXTENSION = 1
TEXT_LIMIT = 1 << 16
"""Bytes of a name or a text; what is longer is passed over."""
NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
LENGTHS = {  # marker: (kind, bytes of the length)
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4), 0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip


class MsgpackFile(Listed):
    """One file; names are the path of maps, joined by slashes."""

    container = "msgpack"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._size = path.stat().st_size
        try:
            with open(path, "rb") as file:
                self._walk(file, (), 0)
        except (struct.error, ValueError, OverflowError) as error:
            raise InputError(
                f"{printable(path)} is truncated or damaged: {printable(error)}.", "Copy or download it again."
            ) from None

    def _walk(self, file: BinaryIO, place: tuple[str, ...], depth: int) -> Any:
        """Read one value; arrays are listed under `place`. Plain values are given back."""
        if depth > DEPTH_LIMIT:
            raise ValueError("maps inside of maps without end")
        kind, length = self._head(file)
        if kind == "map":
            for _ in range(length):
                key = self._walk(file, (), depth + 1)
                inner = (*place, str(key)[:1000])
                value = self._walk(file, inner, depth + 1)
                if value is not None:
                    self.values[inner] = value
            return None
        if kind == "array":
            items = [self._walk(file, (*place, str(i)), depth + 1) for i in range(length)]
            return items if all(item is not None for item in items) else None
        if kind == "value":
            return length
        if length > self._size - file.tell():
            raise ValueError("a length past the end")
        if kind == "text":
            text = file.read(length) if length <= TEXT_LIMIT else b""
            file.seek(length - len(text), 1)
            return text.decode("utf-8", "replace")
        if kind == "ext":
            self._extension(file, place, length)
            return None
        file.seek(length, 1)
        return None

    def _extension(self, file: BinaryIO, place: tuple[str, ...], length: int) -> None:
        (code,) = struct.unpack("b", file.read(1))
        end = file.tell() + length
        if code == ARRAY_EXTENSION:
            parts: list[Any] = []
            kind, count = self._head(file)
            if (kind, count) != ("array", 3):
                raise ValueError("an array that is none")
            kind, axes = self._head(file)
            if kind != "array" or axes > 64:
                raise ValueError("an array of no shape")
            shape = [self._walk(file, (), 1) for _ in range(axes)]
            parts = [self._walk(file, (), 1)]
            kind, nbytes = self._head(file)
            if kind != "bytes" or file.tell() + nbytes > end:
                raise ValueError("an array without data")
            stored = str(parts[0])
            if stored in BYTES:
                storage = Storage(stored, nbytes, file_bytes(self.path, file.tell()), "/".join(place))
                self.add((), "/".join(place), strided(storage, stored, 0, shape, row_major(tuple(shape))))
        file.seek(end)

    def _head(self, file: BinaryIO) -> tuple[str, Any]:
        """Kind and length of the next value; ("value", v) for one without a length."""
        first = file.read(1)
        if not first:
            raise ValueError("it ends early")
        mark = first[0]
        if mark < 0x80 or mark >= 0xE0:
            return "value", mark if mark < 0x80 else mark - 256
        if mark < 0xC0:
            return ("map", mark & 15) if mark < 0x90 else ("array", mark & 15) if mark < 0xA0 else ("text", mark & 31)
        if mark in (0xC0, 0xC2, 0xC3):
            return "value", {0xC0: None, 0xC2: False, 0xC3: True}[mark]
        if 0xD4 <= mark <= 0xD8:
            return "ext", 1 << (mark - 0xD4)
        if mark in NUMBERS:
            return "value", struct.unpack(NUMBERS[mark], file.read(struct.calcsize(NUMBERS[mark])))[0]
        if mark not in LENGTHS:
            raise ValueError(f"an unused mark {mark:#x}")
        kind, width = LENGTHS[mark]
        data = file.read(width)
        if len(data) < width:
            raise ValueError("a length is cut off")
        return kind, int.from_bytes(data, "big")
