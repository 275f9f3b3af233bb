"""One array of a file and how a range of its rows is read, without the rest of it.

Legend: an array has lead axes and one channel axis of width W; a row is one point of the lead axes, in C order; an item
is one index of the first lead axis.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> object:
        """Release it."""


class Opened:
    """What one pass holds open: the file that it read last, so that a thousand arrays of one file open it once."""

    def __init__(self, cache: int) -> None:
        self.cache = cache
        """Bytes that may be held between reads (chunks of HDF5)."""
        self._key: Hashable = None
        self._file: Any = None

    def get(self, key: Hashable, opener: Callable[[], Closable]) -> Any:
        """The file of this key, opened unless it is the one that is open."""
        if self._file is None or key != self._key:
            self.close()
            self._file, self._key = opener(), key
        return self._file

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Source(ABC):
    """One array of a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """As stored; bfloat16 shows as float32, into which it is widened."""
    path: Path = Path()
    """The file that holds it; the empty path in memory."""
    bounds: np.ndarray | None = None
    """(U + 1,) first row of each unit (utterance, clip) and the number of rows, where the file says."""
    unit: str = "utterances"
    """What `bounds` bound."""

    @abstractmethod
    def reader(self, axis: int, opened: Opened) -> Reader:
        """Ready to read rows, with the channels along `axis` (counted from 0)."""

    def attributes(self) -> Mapping[str, Any]:
        """What stands beside the array in its file."""
        return {}

    def storage(self, axis: int) -> tuple[tuple[int, ...], int]:
        """Row counts, largest first, at whose multiples ranges are read fastest; bytes of the largest storage unit that
        cannot be read in part (a compressed chunk)."""
        return (1,), 0


class Reader(ABC):
    """An array of a pass; used by one thread."""

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        self.shape, self.axis = shape or (1,), axis
        self.lead = tuple(n for i, n in enumerate(self.shape) if i != axis)
        self.width = self.shape[axis]

    @abstractmethod
    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Fill `out` (stop - start, W) with rows start … stop."""

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


def channels_last(box: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """A box whose leading fixed indices were dropped, with the channel axis moved to the end."""
    dropped = ndim - box.ndim
    # Fixed indices stand before the slice, on either side of the channel axis.
    return np.moveaxis(box, max(axis - dropped, 0), -1)


class ArraySource(Source):
    """An array that is in memory already, of the file at `path` where it came from one."""

    def __init__(self, array: np.ndarray, path: Path = Path()) -> None:
        self.array, self.path = array, path
        self.shape, self.dtype = array.shape, array.dtype

    def reader(self, axis: int, opened: Opened) -> Reader:
        return ArrayRows(self, axis)


class ArrayRows(Reader):
    """Boxes of an array in memory."""

    def __init__(self, source: ArraySource, axis: int) -> None:
        super().__init__(source.shape, axis)
        self._array = np.atleast_1d(source.array)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        for index, begin, end in self.slabs(start, stop):
            rows = channels_last(self._array[index], self.axis, len(self.shape))
            out[begin - start : end - start].reshape(rows.shape)[...] = rows
