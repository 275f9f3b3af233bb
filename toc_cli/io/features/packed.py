"""A compressed array of a .npz: decoded front to back, never held whole."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import arrays
from toc_cli.io.features.source import Opened, Reader, Source
from toc_cli.io.names import printable


class PackedSource(Source):
    """An entry of the zip file that has to be decoded from its start."""

    def __init__(self, path: Path, member: str, header: arrays.ArrayHeader) -> None:
        self.path, self.member, self.header = path, member, header
        self.shape, self.dtype = header.shape, header.dtype

    def reader(self, axis: int, opened: Opened) -> Reader:
        if self.header.fortran or (axis == 0 and len(self.shape) > 1):
            raise InputError(
                f"{printable(self.path)}: {printable(self.member)} is compressed and has its rows along the last axis, "
                "so it cannot be streamed.",
                "Save it with np.save or np.savez instead of np.savez_compressed.",
            )
        return PackedItems(self, axis, opened.get(self.path, lambda: zipfile.ZipFile(self.path)))

    def unit_shape(self, axis: int) -> tuple[int, ...]:
        """What is decoded whole: a row, or an item where the channels are not last."""
        return (self.shape[axis],) if axis == len(self.shape) - 1 else self.shape[1:]

    def storage(self, axis: int) -> tuple[tuple[int, ...], int]:
        unit = self.unit_shape(axis)
        return (math.prod(unit) // self.shape[axis], 1), math.prod(unit) * self.dtype.itemsize


class PackedItems(Reader):
    """Whole units of a stream, in order; going back starts it again."""

    def __init__(self, source: PackedSource, axis: int, archive: zipfile.ZipFile) -> None:
        super().__init__(source.shape, axis)
        self._source, self._archive = source, archive
        self._file: IO[bytes] | None = None
        self._at = 0
        self._unit_shape = source.unit_shape(axis)
        self._unit_rows = math.prod(self._unit_shape) // max(1, self.width)
        self._unit_bytes = math.prod(self._unit_shape) * source.dtype.itemsize
        self._kept: tuple[int, bytes] = (-1, b"")

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        rows = self._unit_rows
        first, last = start // rows, -(-stop // rows)
        try:
            data = self._units(first, last)
        except arrays.ZIP_ERRORS as error:
            raise InputError(f"{printable(self._source.path)} is damaged: {printable(error)}.") from None
        units = np.frombuffer(data, self._source.dtype).reshape(last - first, *self._unit_shape)
        if rows > 1:
            units = np.moveaxis(units, self.axis, -1)
        out[...] = units.reshape(-1, self.width)[start - first * rows : stop - first * rows]

    def _units(self, first: int, last: int) -> bytes:
        """The bytes of units first … last; the last one is kept, because the next range may start inside of it."""
        unit, head = self._kept if self._kept[0] == first else (first - 1, b"")
        if self._file is None or unit + 1 < self._at:
            self._open()
        assert self._file is not None
        # In steps: a skipped stretch is decoded too, and must not be held.
        skip = (unit + 1 - self._at) * self._unit_bytes
        while skip and (passed := len(self._file.read(min(skip, 1 << 20)))):
            skip -= passed
        data = head + self._file.read((last - unit - 1) * self._unit_bytes)
        if len(data) < (last - first) * self._unit_bytes:
            raise EOFError("its data ends early")
        self._at = last
        if self._unit_rows > 1:
            self._kept = (last - 1, data[-self._unit_bytes :])
        return data

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._archive.open(self._source.member)
        self._file.read(self._source.header.length)
        self._at = 0
