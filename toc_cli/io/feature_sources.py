"""How each container gives a range of rows of one feature array, without reading the rest of it.

Legend: an array has lead axes and one channel axis of width W; a row is one point of the lead axes, in C order; an item
is one index of the first lead axis.
"""

from __future__ import annotations

import math
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import arrays, hdf5, safetensors
from toc_cli.io.containers import container_of
from toc_cli.io.names import printable

SAFETENSORS_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "I8": "<i1", "U8": "<u1", "I16": "<i2",
                      "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8", "BOOL": "?", "C64": "<c8"}  # fmt: skip


class Source(ABC):
    """One array of a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """As stored; bfloat16 shows as float32, into which it is widened."""

    @abstractmethod
    def reader(self, axis: int, cache: int) -> Reader:
        """Open for reading rows, with the channels along `axis` (counted from 0).

        Up to `cache` bytes are held between reads.
        """


class Reader(ABC):
    """An open array; used by one thread."""

    align: tuple[int, ...] = (1,)
    """Row counts, largest first: ranges that start at multiples of the first that fits in memory are read fastest."""
    unit_bytes: int = 0
    """Bytes of one storage unit that cannot be read in part (a compressed chunk)."""

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        self.shape, self.axis = shape, axis
        self.lead = tuple(n for i, n in enumerate(shape) if i != axis)
        self.width = shape[axis]

    @abstractmethod
    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Fill `out` (stop - start, W) with rows start … stop."""

    def close(self) -> None:  # noqa: B027 (some readers hold nothing open)
        """Release the file."""

    def slabs(self, start: int, stop: int) -> Iterator[tuple[tuple[int | slice, ...], int, int]]:
        """Index (with the channel axis whole), first row and end row of the boxes that make up rows start … stop."""
        for index, begin, end in boxes(self.lead, start, stop):
            full = list(index) + [slice(None)] * (len(self.lead) - len(index))
            full.insert(self.axis, slice(None))
            yield tuple(full), begin, end


def boxes(lead: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int | slice, ...], int, int]]:
    """Cut rows start … stop of a C-ordered box of shape `lead` into boxes: index prefix, first row, end row.

    Each prefix is fixed indices and then one slice; there are at most two boxes per axis.
    """
    if start >= stop:
        return
    if not lead:
        yield (), start, stop
        return
    inner = math.prod(lead[1:])
    first, last = start // inner, stop // inner
    if start % inner:
        end = min(stop, (first + 1) * inner)
        for index, a, b in boxes(lead[1:], start % inner, end - first * inner):
            yield (first, *index), a + first * inner, b + first * inner
        first += 1
    if first < last:
        yield (slice(first, last),), first * inner, last * inner
    if stop % inner and last >= first:
        for index, a, b in boxes(lead[1:], 0, stop % inner):
            yield (last, *index), a + last * inner, b + last * inner


class RawSource(Source):
    """Numbers that lie in a file as they are: .npy, stored .npz, .safetensors."""

    def __init__(self, path: Path, offset: int, header: arrays.ArrayHeader, *, bfloat16: bool = False) -> None:
        self.path, self.offset, self.header, self.bfloat16 = path, offset, header, bfloat16
        self.shape = header.shape
        self.dtype = np.dtype(np.float32) if bfloat16 else header.dtype

    def reader(self, axis: int, cache: int) -> Reader:
        rows_lie_whole = axis == len(self.shape) - 1 and not self.header.fortran
        return RawRows(self, axis) if rows_lie_whole else RawSlabs(self, axis)


def widen(bits: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 bits (uint16) as float32: the same number, exactly."""
    np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32)


class RawRows(Reader):
    """Rows that lie one after the other: one read per range."""

    def __init__(self, source: RawSource, axis: int) -> None:
        super().__init__(source.shape, axis)
        self._source = source
        self._file = open(source.path, "rb", buffering=0)  # noqa: SIM115 (closed by close)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        stored = self._source.header.dtype
        direct = out if stored == out.dtype and not self._source.bfloat16 else np.empty(out.shape, stored)
        self._file.seek(self._source.offset + start * self.width * stored.itemsize)
        view = direct.reshape(-1).view(np.uint8).data
        while len(view):
            count = self._file.readinto(view)
            if not count:
                raise InputError(f"{printable(self._source.path)} became shorter while it was read.")
            view = view[count:]
        if self._source.bfloat16:
            widen(direct, out)
        elif direct is not out:
            out[...] = direct

    def close(self) -> None:
        self._file.close()


class RawSlabs(Reader):
    """Rows spread over the file (channels not last, or Fortran order): boxes of a mapping, dropped after each range."""

    def __init__(self, source: RawSource, axis: int) -> None:
        super().__init__(source.shape, axis)
        self._source = source

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        header = self._source.header
        order = "F" if header.fortran else "C"
        mapped = np.memmap(self._source.path, header.dtype, "r", self._source.offset, header.shape, order)  # type: ignore[call-overload]
        for index, begin, end in self.slabs(start, stop):
            rows = channels_last(mapped[index], self.axis, len(self.shape))
            target = out[begin - start : end - start].reshape(rows.shape)
            if self._source.bfloat16:
                widen(np.ascontiguousarray(rows), target)
            else:
                target[...] = rows


def channels_last(box: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """A box whose leading fixed indices were dropped, with the channel axis moved to the end."""
    dropped = ndim - box.ndim
    # Fixed indices stand before the slice, on either side of the channel axis.
    return np.moveaxis(box, max(axis - dropped, 0), -1)


class StreamSource(Source):
    """A compressed array of a .npz: decoded front to back, never held whole."""

    def __init__(self, path: Path, member: str, header: arrays.ArrayHeader) -> None:
        self.path, self.member, self.header = path, member, header
        self.shape, self.dtype = header.shape, header.dtype

    def reader(self, axis: int, cache: int) -> Reader:
        if self.header.fortran or (axis == 0 and len(self.shape) > 1):
            raise InputError(
                f"{printable(self.path)}: {printable(self.member)} is compressed and has its rows along the last axis, "
                "so it cannot be streamed.",
                "Save it with np.save or np.savez instead of np.savez_compressed.",
            )
        return StreamItems(self, axis)


class StreamItems(Reader):
    """Whole units (rows, or items where the channels are not last) of a stream; going back starts it again."""

    def __init__(self, source: StreamSource, axis: int) -> None:
        super().__init__(source.shape, axis)
        self._source = source
        self._archive = zipfile.ZipFile(source.path)
        self._file: IO[bytes] | None = None
        self._at = 0
        last = axis == len(self.shape) - 1
        self._unit_rows = 1 if last else math.prod(self.lead[1:])
        self._unit_shape = (self.width,) if last else self.shape[1:]
        self._kept: tuple[int, bytes] = (-1, b"")
        self.align = (self._unit_rows, 1)
        self.unit_bytes = math.prod(self._unit_shape) * source.dtype.itemsize

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
        self._file.seek((unit + 1 - self._at) * self.unit_bytes, 1)
        data = head + self._file.read((last - unit - 1) * self.unit_bytes)
        if len(data) < (last - first) * self.unit_bytes:
            raise EOFError("its data ends early")
        self._at = last
        if self._unit_rows > 1:
            self._kept = (last - 1, data[-self.unit_bytes :])
        return data

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._archive.open(self._source.member)
        self._file.read(self._source.header.length)
        self._at = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._archive.close()


class Hdf5Source(Source):
    """A dataset of an HDF5 file."""

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self.path, self.name = path, dataset.name
        self.shape, self.dtype, self.chunks = dataset.shape, dataset.dtype, dataset.chunks
        self.filtered = dataset.id.get_create_plist().get_nfilters() > 0

    def reader(self, axis: int, cache: int) -> Reader:
        return Hdf5Rows(self, axis, cache)


class Hdf5Rows(Reader):
    """Hyperslabs read straight into the block."""

    def __init__(self, source: Hdf5Source, axis: int, cache: int) -> None:
        super().__init__(source.shape, axis)
        self._source = source
        if source.chunks:
            chunk = [c for i, c in enumerate(source.chunks) if i != axis]
            self.align = tuple(
                c * math.prod(self.lead[i + 1 :]) for i, c in enumerate(chunk) if math.prod(chunk[:i]) == 1
            )
            self.unit_bytes = math.prod(source.chunks) * source.dtype.itemsize if source.filtered else 0
        # A filtered chunk across two blocks is decoded once; an unfiltered one is read in part, past the cache.
        self._handle = hdf5.open_hdf5(source.path, cache=cache if source.filtered else 0)
        self._dataset = self._handle[source.name]

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        try:
            for index, begin, end in self.slabs(start, stop):
                target = out[begin - start : end - start]
                if self.axis == len(self.shape) - 1:
                    fixed = sum(isinstance(i, int) for i in index)
                    self._dataset.read_direct(target.reshape(-1, *self.shape[fixed + 1 :]), index)
                else:
                    rows = channels_last(self._dataset[index], self.axis, len(self.shape))
                    target.reshape(rows.shape)[...] = rows
        except hdf5.ERRORS as error:
            raise InputError(
                f"{printable(self._source.path)}: rows {start:,} to {stop:,} of {printable(self._source.name)} "
                f"cannot be read: {printable(error)}."
            ) from None

    def close(self) -> None:
        self._handle.close()


def open_sources(path: Path) -> dict[str, Source]:
    """Every number array of a features file, by key ("" for .npy). InputError as in `open_checkpoint`."""
    return container_of(path).open_features(path)


def hdf5_sources(path: Path) -> dict[str, Source]:
    with hdf5.open_hdf5(path) as file:
        return {name: Hdf5Source(path, dataset) for name, dataset in hdf5.numeric_datasets(file, path).items()}


def npy_sources(path: Path) -> dict[str, Source]:
    with open(path, "rb") as file:
        header = arrays.read_header(file, printable(path), path.stat().st_size)
    return {"": RawSource(path, header.length, header)}


def npz_sources(path: Path) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for name, member, header in arrays.list_npz(path):
        if member.compress_type == zipfile.ZIP_STORED:
            sources[name] = RawSource(path, _data_offset(path, member) + header.length, header)
        else:
            sources[name] = StreamSource(path, member.filename, header)
    return sources


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip entry start: after its local header of 30 bytes, name and extra field."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        local = file.read(30)
    offset = member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if offset + member.file_size > path.stat().st_size:
        raise InputError(f"{printable(path)} is truncated at {printable(member.filename)}.")
    return offset


def safetensors_sources(path: Path) -> dict[str, Source]:
    header, start = safetensors.read_header(path)
    sources: dict[str, Source] = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in SAFETENSORS_DTYPES:
            dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
            array = arrays.ArrayHeader(tuple(entry["shape"]), dtype, False, 0)
            offset = start + entry["data_offsets"][0]
            sources[name] = RawSource(path, offset, array, bfloat16=entry["dtype"] == "BF16")
    return sources
