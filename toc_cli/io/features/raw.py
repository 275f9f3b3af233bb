"""Numbers that lie in a file as they are: .npy, stored .npz, .safetensors, members of a tar."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import arrays, safetensors
from toc_cli.io.features.packed import PackedSource
from toc_cli.io.features.source import Opened, Reader, Source, channels_last
from toc_cli.io.names import printable

SAFETENSORS_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "I8": "<i1", "U8": "<u1", "I16": "<i2",
                      "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8", "BOOL": "?", "C64": "<c8"}  # fmt: skip


class RawSource(Source):
    """An array at an offset of a file."""

    def __init__(self, path: Path, offset: int, header: arrays.ArrayHeader, *, bfloat16: bool = False) -> None:
        self.path, self.offset, self.header, self.bfloat16 = path, offset, header, bfloat16
        self.shape = header.shape
        self.dtype = np.dtype(np.float32) if bfloat16 else header.dtype

    def reader(self, axis: int, opened: Opened) -> Reader:
        file = opened.get(("raw", self.path), lambda: open(self.path, "rb", buffering=0))  # noqa: SIM115 (closed by the pass)
        rows_lie_whole = axis == max(0, len(self.shape) - 1) and not self.header.fortran
        return RawRows(self, axis, file) if rows_lie_whole else RawSlabs(self, axis, file)

    @property
    def shorter(self) -> InputError:
        """The error of a file that lost its end since it was listed."""
        return InputError(f"{printable(self.path)} became shorter while it was read.")


def widen(bits: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 bits (uint16) as float32: the same number, exactly."""
    np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32)


class RawRows(Reader):
    """Rows that lie one after the other: one read per range."""

    def __init__(self, source: RawSource, axis: int, file: IO[bytes]) -> None:
        super().__init__(source.shape, axis)
        self._source, self._file = source, file

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        stored = self._source.header.dtype
        direct = out if stored == out.dtype and not self._source.bfloat16 else np.empty(out.shape, stored)
        self._file.seek(self._source.offset + start * self.width * stored.itemsize)
        view = direct.reshape(-1).view(np.uint8).data
        while len(view):
            count = self._file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise self._source.shorter
            view = view[count:]
        if self._source.bfloat16:
            widen(direct, out)
        elif direct is not out:
            out[...] = direct


class RawSlabs(Reader):
    """Rows spread over the file (channels not last, or Fortran order): boxes of a mapping, dropped after each range."""

    def __init__(self, source: RawSource, axis: int, file: IO[bytes]) -> None:
        super().__init__(source.shape, axis)
        self._source, self._file = source, file

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        source, header = self._source, self._source.header
        # A mapping past the end of its file ends the process when it is touched.
        if os.fstat(self._file.fileno()).st_size < source.offset + header.nbytes:
            raise source.shorter
        order = "F" if header.fortran else "C"
        mapped = np.memmap(source.path, header.dtype, "r", source.offset, header.shape, order)  # type: ignore[call-overload]
        for index, begin, end in self.slabs(start, stop):
            rows = channels_last(mapped[index], self.axis, len(self.shape))
            target = out[begin - start : end - start].reshape(rows.shape)
            if source.bfloat16:
                widen(np.ascontiguousarray(rows), target)
            else:
                target[...] = rows


def npy_sources(path: Path) -> dict[str, Source]:
    """The array of a .npy under ""; a `.len` file of HuBERT's kind beside it gives its utterances."""
    with open(path, "rb") as file:
        header = arrays.read_header(file, printable(path), os.fstat(file.fileno()).st_size)
    source = RawSource(path, header.length, header)
    lengths = path.with_suffix(".len")
    if len(header.shape) == 2 and lengths.is_file():
        source.bounds = utterances(lengths, header.shape[0], path)
    return {"": source}


def utterances(lengths: Path, rows: int, path: Path) -> np.ndarray:
    """(U + 1,) first rows of the utterances whose lengths stand in a text file, one a line."""
    try:
        counts = np.array([int(line) for line in lengths.read_text("utf-8").split()], dtype=np.int64)
    except (OSError, ValueError, OverflowError):
        raise InputError(f"{printable(lengths)} is not a list of lengths, one whole number a line.") from None
    bounds = np.concatenate([[0], np.cumsum(counts)])
    if (counts < 0).any() or bounds[-1] != rows:
        raise InputError(
            f"{printable(lengths)} counts {int(bounds[-1]):,} rows in {len(counts):,} utterances, {printable(path)} has {rows:,}.",
            "Remove it, or write it again with the features.",
        )
    return np.unique(bounds)


def npz_sources(path: Path) -> dict[str, Source]:
    """The arrays of a .npz by name: stored ones at their offset, compressed ones as streams."""
    sources: dict[str, Source] = {}
    for name, member, header in arrays.list_npz(path):
        if member.compress_type == zipfile.ZIP_STORED:
            sources[name] = RawSource(path, _data_offset(path, member) + header.length, header)
        else:
            sources[name] = PackedSource(path, member.filename, header)
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
    """The number arrays of a .safetensors by name."""
    header, start = safetensors.read_header(path)
    sources: dict[str, Source] = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in SAFETENSORS_DTYPES:
            dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
            array = arrays.ArrayHeader(tuple(entry["shape"]), dtype, False, 0)
            offset = start + entry["data_offsets"][0]
            sources[name] = RawSource(path, offset, array, bfloat16=entry["dtype"] == "BF16")
    return sources
