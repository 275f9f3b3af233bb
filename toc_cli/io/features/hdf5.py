"""Datasets of an HDF5 file, read in hyperslabs straight into the block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import hdf5
from toc_cli.io.checkpoint.arrays import ArrayHeader
from toc_cli.io.features.raw import RawSource
from toc_cli.io.features.source import Opened, Reader, Source, channels_last
from toc_cli.io.names import printable

FLOOD = 1 << 30
"""Bytes that one chunk may unpack to without a look."""


class Hdf5Source(Source):
    """A dataset of an HDF5 file."""

    def __init__(self, path: Path, name: str, found: hdf5.Hdf5Array) -> None:
        self.path, self.name = path, f"/{name}"
        self.checked = False
        """Whether its bytes are known to be written, and its chunks to unpack to what they hold."""
        self.shape, self.dtype, self.chunks, self.filtered = found.shape, found.dtype, found.chunks, found.filtered
        self.offset = found.offset
        self.stamped = found.stamped

    def attributes(self) -> Mapping[str, Any]:
        if not self.stamped:
            return {}
        with hdf5.open_hdf5(self.path) as file:
            try:
                return dict(file[self.name].attrs)
            except hdf5.ERRORS as error:
                raise InputError(
                    f"{printable(self.path)}: the attributes of {printable(self.name)} cannot be read: {printable(error)}."
                ) from None

    def reader(self, axis: int, opened: Opened) -> Reader:
        if self.offset is not None and axis == len(self.shape) - 1:
            # As it lies in the file: opening each of ten thousand datasets costs more than its numbers.
            header = ArrayHeader(self.shape, self.dtype, False, 0)
            return RawSource(self.path, self.offset, header).reader(axis, opened)
        return Hdf5Rows(self, axis, opened)

    def storage(self, axis: int) -> tuple[tuple[int, ...], int]:
        if not self.chunks:
            return (1,), 0
        lead = [n for i, n in enumerate(self.shape) if i != axis]
        chunk = [c for i, c in enumerate(self.chunks) if i != axis]
        align = tuple(c * math.prod(lead[i + 1 :]) for i, c in enumerate(chunk) if math.prod(chunk[:i]) == 1)
        return align, math.prod(self.chunks) * self.dtype.itemsize if self.filtered else 0


class Hdf5Rows(Reader):
    """A dataset of the open file; a filtered chunk, or one narrower than a row, is held while its rows are asked for."""

    def __init__(self, source: Hdf5Source, axis: int, opened: Opened) -> None:
        super().__init__(source.shape, axis)
        self._source = source
        file = opened.get(source.path, lambda: hdf5.open_hdf5(source.path))
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        if source.chunks:
            # A whole unfiltered chunk is read in part, past the cache. Slots: far above the chunks that are there, since
            # chunks that share a slot throw each other out.
            narrow = source.chunks[axis] < self.width
            chunks = math.prod(-(-n // c) for n, c in zip(source.shape, source.chunks, strict=True))
            cache = opened.cache if source.filtered or narrow else 0
            access.set_chunk_cache(min(100_003, 16 * chunks + 1), cache, 1.0)
        try:
            self._id = h5py.h5d.open(file.id, source.name.encode("utf-8", "surrogateescape"), access)
            where = f"{printable(source.path)}: {printable(source.name)}"
            if not source.checked:
                hdf5.check_written(self._id, where)
                if source.filtered:
                    hdf5.check_chunks(self._id, where, flood=FLOOD)
                source.checked = True
        except hdf5.ERRORS as error:
            raise self._unreadable(0, math.prod(self.lead), error) from None

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        last = self.axis == max(0, len(self.shape) - 1)
        try:
            if last and start == 0 and stop == math.prod(self.lead) and out.flags.c_contiguous:
                self._id.read(h5py.h5s.ALL, h5py.h5s.ALL, out.reshape(self.shape))
                return
            dataset = h5py.Dataset(self._id)
            for index, begin, end in self.slabs(start, stop):
                target = out[begin - start : end - start]
                if last:
                    fixed = sum(isinstance(i, int) for i in index)
                    dataset.read_direct(target.reshape(-1, *self.shape[fixed + 1 :]), index)
                else:
                    rows = channels_last(dataset[index], self.axis, len(self.shape))
                    target.reshape(rows.shape)[...] = rows
        except hdf5.ERRORS as error:
            raise self._unreadable(start, stop, error) from None

    def _unreadable(self, start: int, stop: int, error: BaseException) -> InputError:
        return InputError(
            f"{printable(self._source.path)}: rows {start:,} to {stop:,} of {printable(self._source.name)} "
            f"cannot be read: {printable(error)}."
        )


def hdf5_sources(path: Path) -> dict[str, Source]:
    """The number datasets of an HDF5 file by path."""
    with hdf5.open_hdf5(path) as file:
        found: dict[str, Any] = hdf5.numeric_datasets(file, path)
        return {name: Hdf5Source(path, name, array) for name, array in found.items()}
