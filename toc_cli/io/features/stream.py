"""One modality, larger than memory: the rows of its parts, in order, in blocks that a thread reads ahead.

Legend: as of `part`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from toc_cli.errors import InputError, UsageError
from toc_cli.io.features.part import Part
from toc_cli.io.features.prefetch import prefetch
from toc_cli.io.features.sampling import PIECES, spread, within
from toc_cli.io.features.source import Opened
from toc_cli.io.names import printable
from toc_cli.io.stamps import Stamps

BLOCK_BYTES = 1 << 24
"""Target size of a block: small enough to be reused by the allocator, large enough to amortise a read."""
PLAIN = "rows"
"""The unit of arrays that are rows and nothing else: nobody knows which of them belong together."""


class Stream:
    """The ordered parts of one modality."""

    def __init__(self, name: str, parts: Sequence[Part], max_memory: int) -> None:
        self.name = name
        """Name of the modality."""
        self.parts = tuple(parts)
        self.max_memory = max_memory
        """Bytes that a reader and its blocks may take together."""
        self.whole: Stream = self
        """The stream that this one was limited from."""
        self._held: list[tuple[int, int, np.ndarray]] = []
        self._adopted: tuple[str, np.ndarray] | None = None

    @property
    def path(self) -> Path:
        """The file of its first part."""
        return self.parts[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored, for a single whole array; else the joined lead axes and the width."""
        return self.parts[0].source.shape if self._is_one_array else (*self.lead_shape, self.width)

    @property
    def axis(self) -> int:
        """The channel axis of `shape`."""
        return self.parts[0].axis if self._is_one_array else len(self.lead_shape)

    @property
    def _is_one_array(self) -> bool:
        return len(self.parts) == 1 and self.parts[0].rows == self.parts[0].whole_rows

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every block."""
        return self.parts[0].dtype

    @property
    def width(self) -> int:
        """W, the length of the channel axis."""
        return self.parts[0].width

    @cached_property
    def lead_shape(self) -> tuple[int, ...]:
        """The axes of its rows: parts whose other axes agree are joined along the first, others are rows."""
        if any(part.rows != part.whole_rows for part in self.parts):
            return (self.rows,)
        inner = {part.lead_shape[1:] for part in self.parts}
        if len(self.parts) == 1:
            return self.parts[0].lead_shape
        if len(inner) > 1 or any(not part.lead_shape for part in self.parts):
            return (self.rows,)
        return (sum(part.lead_shape[0] for part in self.parts), *inner.pop())

    @cached_property
    def firsts(self) -> np.ndarray:
        """(parts + 1,) the first row of each part, and the number of rows."""
        return np.concatenate([[0], np.cumsum([part.rows for part in self.parts], dtype=np.int64)])

    @property
    def rows(self) -> int:
        """Number of feature vectors."""
        return int(self.firsts[-1])

    @cached_property
    def _units(self) -> tuple[str, np.ndarray | None]:
        if self.whole is not self:
            return PLAIN, None
        if all(part.source.bounds is None and len(part.lead_shape) <= 1 for part in self.parts):
            bounds = np.unique(self.firsts)
        else:
            starts = [part.unit_starts() + first for part, first in zip(self.parts, self.firsts, strict=False)]
            bounds = np.unique(np.concatenate([*starts, self.firsts[-1:]]))
        if len(bounds) <= 2:
            return PLAIN, None
        if (bounded := next((part.source for part in self.parts if part.source.bounds is not None), None)) is not None:
            return bounded.unit, bounds
        if any(len(part.lead_shape) > 1 for part in self.parts):
            return "clips", bounds
        if all(part.rows == 1 for part in self.parts):
            return PLAIN, None
        return ("files" if len({part.path for part in self.parts}) == len(self.parts) else "datasets"), bounds

    @property
    def unit(self) -> str:
        """What its units are: clips, utterances, files, datasets, or plain rows."""
        return self._adopted[0] if self._adopted else self._units[0]

    @property
    def bounds(self) -> np.ndarray | None:
        """(U + 1,) the first row of each unit, and the number of rows; None for plain rows."""
        return self._adopted[1] if self._adopted else self._units[1]

    @property
    def units(self) -> int:
        """How many units it has; of plain rows, the blocks into which they are cut."""
        return min(self.rows, PIECES) if self.bounds is None else len(self.bounds) - 1

    def unit_of(self, rows: np.ndarray) -> np.ndarray:
        """The unit of each row, or the block of plain rows."""
        bounds = np.arange(PIECES + 1) * self.rows // PIECES if self.bounds is None else self.bounds
        return np.searchsorted(bounds, rows, side="right") - 1

    def pairs_with(self, other: Stream) -> bool:
        """Whether rows of one place belong together: equal lead axes and equal units."""
        if self.lead_shape != other.lead_shape:
            return False
        mine, its = self.bounds, other.bounds
        return mine is None or its is None or np.array_equal(mine, its)

    def adopt_units(self, other: Stream) -> None:
        """Take the units of the stream that it is paired with, where it has none of its own."""
        if self.bounds is None and other.bounds is not None:
            self._adopted = (other.unit, other.bounds)

    @property
    def shown(self) -> str:
        """File, dataset and shape, for messages."""
        return self._shown(self.parts[0])

    def _shown(self, part: Part) -> str:
        if len(self.parts) == 1:
            return f"{printable(part.path)}: {printable(self.name)} {part.source.shape}"
        return part.shown

    @cached_property
    def problem(self) -> InputError | None:
        """Why its numbers cannot be features; None where they can."""
        first = self.parts[0]
        for part in self.parts:
            if part.width != first.width or part.dtype != first.dtype:
                return InputError(
                    f"{printable(self.name)} has parts of unlike {'width' if part.width != first.width else 'type'}: "
                    f"{first.shown} of {first.dtype} and {part.shown} of {part.dtype}.",
                    "Parts of one modality are alike: pick one with --modality, or name each: --features NAME=PATH.",
                )
            if part.whole_rows == 0 or part.width == 0:
                return InputError(f"{self._shown(part)} is empty.", "Features need at least one row.")
        if self.dtype.kind != "f" or self.dtype.itemsize > 8:
            kind = {"i": "integer", "u": "integer", "b": "boolean", "c": "complex"}.get(self.dtype.kind, "extended")
            return InputError(
                f"{self.shown} is {self.dtype}: {kind} numbers are no features.",
                "Features are float16, bfloat16, float32 or float64, taken before the quantiser.",
            )
        return None

    def along(self, axis: int) -> Stream:
        """The same arrays, whole, with their channels along another axis."""
        return Stream(self.name, [part.along(axis) for part in self.whole.parts], self.max_memory)

    @property
    def stamps(self) -> Stamps:
        """What a capture noted with its first array."""
        return Stamps.read(self.parts[0].source.attributes(), self.shown)

    def limited(self, rows: int) -> Stream:
        """Exactly `rows` of its rows, spread over its units; itself where it has no more."""
        if rows >= self.rows:
            return self
        parts = [
            replace(self.parts[at], start=self.parts[at].start + a, stop=self.parts[at].start + b)
            for start, stop in spread(self.rows, self.bounds, rows)
            for at, a, b, _ in self.pieces(start, stop)
        ]
        found = Stream(self.name, parts, self.max_memory)
        found.whole = self
        if self.bounds is not None:
            units = self.unit_of(found.positions)
            found._adopted = (self.unit, np.concatenate([np.flatnonzero(np.diff(units, prepend=-1)), [rows]]))
        return found

    @cached_property
    def positions(self) -> np.ndarray:
        """(rows,) the place of each row in the stream that this one was limited from."""
        if self.whole is self:
            return np.arange(self.rows)
        ranges = spread(self.whole.rows, self.whole.bounds, self.rows)
        return np.concatenate([np.arange(start, stop) for start, stop in ranges])

    def sample(self, rows: int | None) -> list[tuple[int, int]]:
        """(start, stop) of at most PIECES runs that hold exactly `rows` rows (all: None), spread over the units; no unit is
        in two of them."""
        return spread(self.rows, self.bounds, self.rows if rows is None else min(rows, self.rows))

    def units_in(self, ranges: Iterable[tuple[int, int]]) -> int:
        """How many units the runs of a sample touch."""
        spans = list(ranges)
        if self.bounds is None:
            return len(spans)
        return sum(int(self.unit_of(np.array([b - 1]))[0] - self.unit_of(np.array([a]))[0]) + 1 for a, b in spans)

    def hold(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Keep these runs of rows in memory when a pass comes by, where they fit in an eighth of `max_memory`."""
        size = sum(stop - start for start, stop in ranges) * self.width * self.dtype.itemsize
        if size <= self.max_memory // 8 and [span[:2] for span in self._held] != list(ranges):
            self._held = [(a, b, np.empty((0, self.width), self.dtype)) for a, b in ranges]

    def blocks(
        self, *, start: int = 0, stop: int | None = None, rows_multiple: int = 1, share: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """First row and values (B, W) of each block of rows start … stop, in order.

        B is a multiple of `rows_multiple` in every block but the last. A thread reads the next block while this one is
        used. Blocks are fresh arrays of `dtype`. InputError names the first row that holds NaN or Inf. Of streams read side by
        side each takes one `share` of the memory.
        """
        if self.problem:
            raise self.problem
        stop = self.rows if stop is None else min(stop, self.rows)
        step = self.block_rows(rows_multiple, share)
        return prefetch(self._read((at, min(at + step, stop)) for at in range(start, stop, step)))

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
        """First row and values of each run of rows, in the order given, by one reader; long ones come in several blocks."""
        if self.problem:
            raise self.problem
        step = self.block_rows(1)
        return prefetch(self._read((at, min(at + step, b)) for a, b in ranges for at in range(a, b, step)))

    def _read(self, spans: Iterable[tuple[int, int]]) -> Generator[tuple[int, np.ndarray], None, None]:
        with Opened(self.max_memory // 4) as opened:
            source, reader = None, None
            for start, stop in spans:
                held = within(self._held, start, stop)
                if held is not None:
                    yield start, held
                    continue
                block = np.empty((stop - start, self.width), self.dtype)
                for index, first, end, row in self.pieces(start, stop):
                    part = self.parts[index]
                    if reader is None or part.source is not source:
                        source, reader = part.source, part.source.reader(part.axis, opened)
                    reader.read(part.start + first, part.start + end, block[row : row + end - first])
                self._check_finite(block, start)
                self._keep(start, block)
                yield start, block

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Part, first and end row in it, and the place in the block of each part's share of rows start … stop."""
        index = int(np.searchsorted(self.firsts, start, side="right")) - 1
        at = start
        while at < stop:
            first, end = int(self.firsts[index]), int(self.firsts[index + 1])
            if end > at:
                yield index, at - first, min(stop, end) - first, at - start
                at = min(stop, end)
            index += 1

    def _keep(self, start: int, block: np.ndarray) -> None:
        """Copy what is to be held out of a block that a pass read."""
        for at, (a, b, rows) in enumerate(self._held):
            first, end = max(a, start), min(b, start + len(block))
            if first < end and a + len(rows) == first:
                self._held[at] = (a, b, np.concatenate([rows, block[first - start : end - start]]))

    @cached_property
    def _storage(self) -> tuple[tuple[int, ...], int]:
        """`Source.storage` of its parts; blocks of several parts are aligned to none of them."""
        if len(self.parts) == 1:
            return self.parts[0].source.storage(self.parts[0].axis)
        return (1,), max(part.source.storage(part.axis)[1] for part in self.parts)

    def block_rows(self, rows_multiple: int, share: int = 1) -> int:
        """Rows per block: a multiple of `rows_multiple`, of a storage unit where one fits, near BLOCK_BYTES.

        Up to four blocks (read, queued, used, reordered) and the chunk cache share `max_memory`; UsageError if they cannot.
        """
        align, unit_bytes = self._storage
        row_bytes = self.width * self.dtype.itemsize
        most = self.max_memory // 8 // share
        if max(unit_bytes // 2, rows_multiple * row_bytes) > most:
            raise UsageError(
                f"{self.shown} needs {max(unit_bytes, rows_multiple * row_bytes):,} bytes at a time, more than "
                f"--max-memory {self.max_memory:,} has room for.",
                f"Give it at least --max-memory {8 * share * max(unit_bytes, rows_multiple * row_bytes)}.",
            )
        wanted = max(1, min(BLOCK_BYTES // share, most) // row_bytes)
        unit = rows_multiple
        for rows in align:
            both = math.lcm(rows_multiple, rows)
            if both * row_bytes <= most:
                unit = both
                break
        return max(wanted // unit, 1) * unit

    def _check_finite(self, block: np.ndarray, first: int) -> None:
        """InputError with dataset and row if the block (B, W) holds NaN or Inf."""
        flat = block.reshape(-1)
        with np.errstate(all="ignore"):
            # NaN and Inf survive a sum, which costs a fraction of a test of each number; an overflow is told apart below.
            total = flat.sum(dtype=np.float32) if block.dtype == np.float16 else np.dot(flat, flat)
        if np.isfinite(total):
            return
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            value = block[bad[0]][~np.isfinite(block[bad[0]])][0]
            index, row, _, _ = next(self.pieces(first + int(bad[0]), first + int(bad[0]) + 1))
            part = self.parts[index]
            raise InputError(
                f"{self._shown(part)} holds {'NaN' if np.isnan(value) else 'Inf'} in row {part.start + row:,}.",
                "Leave such rows out, or find out why the encoder made them.",
            )
