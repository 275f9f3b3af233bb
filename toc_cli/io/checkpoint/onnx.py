"""ONNX: the initialisers of a model, found by walking its protobuf; no data is read, nothing is run.

Fields (onnx.proto): Model.graph 7; Graph.node 1, .initializer 5; Node.input 1, .op_type 4; Tensor.dims 1, .data_type 2,
.float_data 4, .name 8, .raw_data 9, .double_data 10, .external_data 13 (key 1, value 2), .data_location 14.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.listed import Listed
from toc_cli.io.checkpoint.sharded import inside
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.checkpoint.strided import Storage, file_bytes, row_major, strided
from toc_cli.io.names import printable

TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz",
}  # fmt: skip
TEXT_LIMIT = 1 << 16
"""Bytes of a name."""
GRAPH, NODE, INITIALIZER = 7, 1, 5
LOOKUPS = ("Gather", "GatherND", "GatherElements")
Field = tuple[int, int, int, int]
"""Number, wire type, then value and 0, or where a run of bytes starts and ends."""


class OnnxFile(Listed):
    """One .onnx file. `values["gathered",]` names the initialisers that a Gather reads: tables that are looked up."""

    container = "onnx"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._size = path.stat().st_size
        gathered: set[str] = set()
        try:
            with open(path, "rb") as file:
                for number, _, start, end in _fields(file, 0, self._size):
                    if number == GRAPH:
                        self._graph(file, start, end, gathered)
        except (ValueError, OverflowError, UnicodeError) as error:
            raise InputError(
                f"{printable(path)} is truncated or damaged: {printable(error)}.", "Copy or download it again."
            ) from None
        self.values["gathered",] = sorted(gathered & set(self.infos))

    def _graph(self, file: BinaryIO, start: int, end: int, gathered: set[str]) -> None:
        for number, wire, begin, stop in _fields(file, start, end):
            if number == INITIALIZER and wire == 2:
                self._initializer(file, begin, stop)
            elif number == NODE and wire == 2:
                parts = list(_fields(file, begin, stop))
                kind = next((_text(file, a, b) for n, w, a, b in parts if n == 4 and w == 2), "")
                inputs = [_text(file, a, b) for n, w, a, b in parts if n == 1 and w == 2]
                if kind in LOOKUPS and inputs:
                    gathered.add(inputs[0])

    def _initializer(self, file: BinaryIO, start: int, end: int) -> None:
        shape: list[int] = []
        kind, name, external = 0, "", {}
        data: tuple[int, int] | None = None
        outside = False
        for number, wire, a, b in _fields(file, start, end):
            if number == 1:
                shape += [a] if wire == 0 else _packed(file, a, b)
            elif number == 2:
                kind = a
            elif number == 8:
                name = _text(file, a, b)
            elif number == 9 or (number in (4, 10) and wire == 2):
                data = a, b
            elif number == 13:
                pair = {n: _text(file, c, d) for n, w, c, d in _fields(file, a, b) if w == 2}
                external[pair.get(1, "")] = pair.get(2, "")
            elif number == 14:
                outside = a == 1
        if kind not in TYPES or not (outside or data):
            return  # texts, numbers spelt one by one: no table of vectors
        stored, place = TYPES[kind], self.path
        nbytes = math.prod(shape) * BYTES[stored]
        at, length = data or (0, 0)
        length -= at
        if outside:
            place = inside(self.path, external.get("location"))
            at, length = int(external.get("offset") or 0), int(external.get("length") or nbytes)
            if at < 0 or at + length > place.stat().st_size:
                raise ValueError(f"{name} reaches past the end of {place.name}")
        if length != nbytes:
            raise ValueError(f"{name} of shape {tuple(shape)} has {length:,} bytes")
        if outside and place not in self.files:
            self.files += (place,)
        storage = Storage(stored, nbytes, file_bytes(place, at), name)
        self.add((), name, strided(storage, stored, 0, shape, row_major(shape)))


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields of a message that lies at start … end. ValueError where they do not fill it."""
    while start < end:
        tag, start = _varint(file, start)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, start = _varint(file, start)
            yield number, wire, value, 0
            continue
        if wire == 2:
            length, start = _varint(file, start)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        if start + length > end:
            raise ValueError("a field that reaches past its message")
        yield number, wire, start, start + length
        start += length


def _varint(file: BinaryIO, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    file.seek(at)
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("a number is cut off")
        at += 1
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value, at
    raise ValueError("a number without end")


def _packed(file: BinaryIO, start: int, end: int) -> list[int]:
    found: list[int] = []
    while start < end and len(found) <= 64:
        value, start = _varint(file, start)
        found.append(value)
    return found


def _text(file: BinaryIO, start: int, end: int) -> str:
    if end - start > TEXT_LIMIT:
        raise ValueError("a name without end")
    file.seek(start)
    return file.read(end - start).decode("utf-8", "replace")
