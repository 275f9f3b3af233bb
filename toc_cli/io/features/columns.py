"""Columns of Parquet and Arrow tables: a list of numbers in each record is a row, a list of such lists is a clip of rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toc_cli.errors import InputError, missing_extra
from toc_cli.io.checkpoint.probe import refuse_crash
from toc_cli.io.features.source import ArraySource, Opened, Reader, Source
from toc_cli.io.names import printable


class Table:
    """A file of record batches."""

    batches: int
    schema: Any

    @abstractmethod
    def column(self, name: str, batch: int) -> Any:
        """One column of one batch, as an Arrow array."""

    def close(self) -> None:
        """Release the file."""


class ParquetTable(Table):
    """Row groups are the batches."""

    def __init__(self, path: Path) -> None:
        self._file = _arrow("pyarrow.parquet").ParquetFile(path)
        self.batches, self.schema = self._file.num_row_groups, self._file.schema_arrow

    def column(self, name: str, batch: int) -> Any:
        return _checked(self._file.read_row_group(batch, columns=[name]).column(0).combine_chunks())

    def close(self) -> None:
        self._file.close()


class ArrowTable(Table):
    """An IPC file, or a stream of which the batches are held as they lie in the file."""

    def __init__(self, path: Path) -> None:
        arrow, ipc = _arrow("pyarrow"), _arrow("pyarrow.ipc")
        with open(path, "rb") as file:
            named = file.read(6) == b"ARROW1"
        self._file = arrow.OSFile(str(path)) if named else arrow.memory_map(str(path))
        self._path, self._size = path, path.stat().st_size
        reader = ipc.open_file(self._file) if named else ipc.open_stream(self._file)
        self.schema = reader.schema
        self._batches = None if named else list(reader)
        self._reader = reader
        self.batches = reader.num_record_batches if self._batches is None else len(self._batches)

    def column(self, name: str, batch: int) -> Any:
        if self._batches is None:
            return _checked(self._reader.get_batch(batch).column(name))
        # A mapping past the end of its file ends the process when it is touched.
        if self._path.stat().st_size < self._size:
            raise InputError(f"{printable(self._path)} became shorter while it was read.")
        return _checked(self._batches[batch].column(name))

    def close(self) -> None:
        self._file.close()


def _checked(column: Any) -> Any:
    """The column, its offsets held against its values: what lies outside would be read all the same."""
    column.validate(full=True)
    return column


def parquet_sources(path: Path) -> dict[str, Source]:
    """The columns of a Parquet file that hold lists of numbers, and whole numbers for labels. UsageError without pyarrow."""
    return _sources(path, lambda: ParquetTable(path))


def arrow_sources(path: Path) -> dict[str, Source]:
    """The same of an Arrow IPC file or stream (Feather, Hugging Face datasets)."""
    return _sources(path, lambda: ArrowTable(path))


def _sources(path: Path, opener: Callable[[], Table]) -> dict[str, Source]:
    errors = (_arrow("pyarrow").ArrowException, OSError, UnicodeError, ValueError)
    refuse_crash(path, lambda: _read_all(opener), "Arrow")
    try:
        table = opener()
        try:
            found = {field.name: _source(path, opener, table, field) for field in table.schema}
        finally:
            table.close()
    except errors as error:
        raise InputError(f"{printable(path)} cannot be read: {printable(str(error).partition(chr(10))[0])}.") from None
    sources = {name: source for name, source in found.items() if source is not None}
    if not sources:
        columns = ", ".join(printable(field.name, 40) for field in table.schema)
        raise InputError(
            f"{printable(path)} has no column of lists of numbers (it has {columns}).",
            "Features are lists: one list of numbers a record, or one list of such lists.",
        )
    return sources


def _read_all(opener: Callable[[], Table]) -> None:
    """Every column of lists, in a process of its own."""
    table = opener()
    for field in table.schema:
        _source(Path(), opener, table, field)


def _source(path: Path, opener: Callable[[], Table], table: Table, field: Any) -> Source | None:
    types = _arrow("pyarrow").types
    kind, depth = field.type, 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth == 0 and types.is_integer(kind) and field.name.startswith("label"):
        columns = [table.column(field.name, at) for at in range(table.batches)]
        if any(column.null_count for column in columns):
            raise InputError(f"{printable(path)}: {printable(field.name)} has records without a label.")
        return ArraySource(
            np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns] or [np.zeros(0, int)])
        )
    if depth not in (1, 2) or not (types.is_floating(kind) or types.is_integer(kind)):
        return None
    return ColumnSource(path, opener, table, field.name, depth)


class ColumnSource(Source):
    """A column of lists: (rows, width), the width that of its first list."""

    def __init__(self, path: Path, opener: Callable[[], Table], table: Table, name: str, depth: int) -> None:
        self.path, self.name, self._opener, self._depth = path, name, opener, depth
        self._width: int | None = None
        counts, lengths, self.dtype = [], [np.zeros(1, dtype=np.int64)], np.dtype(np.float32)
        for batch in range(table.batches):
            values, clips = self.rows(table, batch)
            counts.append(len(values))
            lengths.append(clips)
            self.dtype = values.dtype
        self.firsts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.shape = (int(self.firsts[-1]), self._width or 0)
        self.bounds = np.unique(np.cumsum(np.concatenate(lengths))) if depth == 2 and self.shape[0] else None

    def rows(self, table: Table, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows (n, W) of one batch, and how many of them each record has. InputError where lists differ in length."""
        column = table.column(self.name, batch)
        where = f"{printable(self.path)}: {printable(self.name)}"
        if column.null_count:
            raise InputError(f"{where} has records without a value.", "Leave them out.")
        clips = np.ones(len(column), dtype=np.int64)
        if self._depth == 2:
            clips = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
            column = column.flatten()
        widths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        values = column.flatten()
        if values.null_count or column.null_count:
            raise InputError(f"{where} has gaps.", "Leave those records out.")
        if len(widths):
            self._width = int(widths[0]) if self._width is None else self._width
        if len(widths) > 1 or (len(widths) and widths[0] != self._width):
            raise InputError(
                f"{where} has lists of {self._width} and of {int(widths[-1])} numbers.", "Rows are of one width."
            )
        return values.to_numpy(zero_copy_only=False).reshape(-1, self._width or 1), clips

    def reader(self, axis: int, opened: Opened) -> Reader:
        if axis != 1:
            raise InputError(
                f"{printable(self.path)}: {printable(self.name)} holds its channels in lists, along axis 1."
            )
        return ColumnRows(self, opened.get(("table", self.path), self._opener))

    def storage(self, axis: int) -> tuple[tuple[int, ...], int]:
        return (1,), int(np.diff(self.firsts).max(initial=0)) * self.shape[1] * self.dtype.itemsize


class ColumnRows(Reader):
    """The batch that was read last is held."""

    def __init__(self, source: ColumnSource, table: Table) -> None:
        super().__init__(source.shape, 1)
        self._source, self._table = source, table
        self._batch, self._values = -1, np.empty((0, 0))

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        firsts = self._source.firsts
        at = start
        while at < stop:
            batch = int(np.searchsorted(firsts, at, side="right")) - 1
            if batch != self._batch:
                self._values, self._batch = self._source.rows(self._table, batch)[0], batch
            end = min(stop, int(firsts[batch + 1]))
            out[at - start : end - start] = self._values[at - firsts[batch] : end - firsts[batch]]
            at = end


def _arrow(module: str) -> Any:
    """A module of pyarrow. UsageError where it is not installed."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise missing_extra("pyarrow", "arrow") from None
