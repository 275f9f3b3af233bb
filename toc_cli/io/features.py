"""Features larger than memory: rows of every modality, in file order, in blocks that a thread reads ahead.

Legend: a dataset has lead axes (clips, time, height, …), flattened to rows in C order, and one channel axis of width W.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toc_cli.errors import InputError, UsageError
from toc_cli.io.feature_sources import Source, open_sources
from toc_cli.io.names import printable
from toc_cli.io.prefetch import prefetch

BLOCK_BYTES = 1 << 24
"""Target size of a block: small enough to be reused by the allocator, large enough to amortise a read."""
LABEL_LIMIT = 1 << 30
"""Bytes of labels that are loaded whole."""


@dataclass(frozen=True)
class Dataset:
    """One modality: an array whose rows are feature vectors."""

    name: str
    """Name of the modality."""
    path: Path
    key: str
    """Its key inside the file; "" for .npy."""
    source: Source = field(repr=False, compare=False)
    axis: int
    """The channel axis, counted from 0."""
    max_memory: int = field(repr=False)
    """Bytes that a reader and its blocks may take together."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored, in native byte order; bfloat16 shows as float32."""
        return self.source.dtype.newbyteorder("=")

    @property
    def width(self) -> int:
        """W, the length of the channel axis."""
        return self.shape[self.axis]

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """The other axes."""
        return tuple(n for i, n in enumerate(self.shape) if i != self.axis)

    @property
    def rows(self) -> int:
        """Number of feature vectors."""
        return math.prod(self.lead_shape)

    @property
    def shown(self) -> str:
        """File, dataset and shape, for messages."""
        return f"{printable(self.path)}: {printable(self.name)} {self.shape}"

    @property
    def problem(self) -> InputError | None:
        """Why its numbers cannot be features; None where they can."""
        if self.rows == 0 or self.width == 0:
            return InputError(f"{self.shown} is empty.", "Features need at least one row.")
        if self.dtype.kind != "f" or self.dtype.itemsize > 8:
            kind = {"i": "integer", "u": "integer", "b": "boolean", "c": "complex"}.get(self.dtype.kind, "extended")
            return InputError(
                f"{self.shown} is {self.dtype}: {kind} numbers are no features.",
                "Features are float16, bfloat16, float32 or float64, taken before the quantiser.",
            )
        return None

    def blocks(
        self, *, start: int = 0, stop: int | None = None, rows_multiple: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """First row and values (B, W) of each block of rows start … stop, in file order.

        B is a multiple of `rows_multiple` in every block but the last. A thread reads the next block while this one is
        used. Blocks are fresh arrays of `dtype`. InputError names the first row that holds NaN or Inf.
        """
        if self.problem:
            raise self.problem
        stop = self.rows if stop is None else min(stop, self.rows)
        return prefetch(self._read_blocks(start, stop, rows_multiple))

    def _read_blocks(self, start: int, stop: int, rows_multiple: int) -> Generator[tuple[int, np.ndarray], None, None]:
        reader = self.source.reader(self.axis, cache=self.max_memory // 4)
        try:
            step = self.block_rows(reader.align, reader.unit_bytes, rows_multiple)
            for first in range(start, stop, step):
                block = np.empty((min(step, stop - first), self.width), self.dtype)
                reader.read(first, first + len(block), block)
                check_finite(block, first, self)
                yield first, block
        finally:
            reader.close()

    def block_rows(self, align: Sequence[int], unit_bytes: int, rows_multiple: int) -> int:
        """Rows per block: a multiple of `rows_multiple`, of a storage unit where one fits, near BLOCK_BYTES.

        Up to four blocks (read, queued, used, reordered) and the chunk cache share `max_memory`; UsageError if they cannot.
        """
        row_bytes = self.width * self.dtype.itemsize
        most = self.max_memory // 8
        if max(unit_bytes // 2, rows_multiple * row_bytes) > most:
            raise UsageError(
                f"{self.shown} needs {max(unit_bytes, rows_multiple * row_bytes):,} bytes at a time, more than "
                f"--max-memory {self.max_memory:,} has room for.",
                f"Give it at least --max-memory {8 * max(unit_bytes, rows_multiple * row_bytes)}.",
            )
        wanted = max(1, min(BLOCK_BYTES, most) // row_bytes)
        unit = rows_multiple
        for rows in align:
            both = math.lcm(rows_multiple, rows)
            if both * row_bytes <= most:
                unit = both
                break
        return max(wanted // unit, 1) * unit


@dataclass(frozen=True)
class LabelSet:
    """An integer `label…` dataset: one class per index of the first lead axes of a modality."""

    name: str
    path: Path
    key: str
    source: Source = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.source.shape

    def fits(self, dataset: Dataset) -> bool:
        """Whether the labels stand along the first lead axes of a modality."""
        return dataset.lead_shape[: len(self.shape)] == self.shape

    def read(self) -> np.ndarray:
        """The labels as int64, in their stored shape."""
        count = math.prod(self.shape)
        if count * 8 > LABEL_LIMIT:
            raise InputError(f"{printable(self.path)}: {printable(self.name)} {self.shape} is too large for labels.")
        labels = np.empty((math.prod(self.shape[:-1]), self.shape[-1]), self.source.dtype.newbyteorder("="))
        reader = self.source.reader(len(self.shape) - 1, cache=1 << 20)
        try:
            reader.read(0, len(labels), labels)
        finally:
            reader.close()
        return labels.reshape(self.shape).astype(np.int64)

    def for_rows(self, dataset: Dataset, labels: np.ndarray | None = None) -> np.ndarray:
        """The label of each row of a modality (rows,): a clip's label stands for all of its rows."""
        if not self.fits(dataset):
            raise InputError(
                f"{printable(self.path)}: labels {printable(self.name)} {self.shape} do not fit {dataset.shown}.",
                "Labels stand along the first axes of the features.",
            )
        labels = self.read() if labels is None else labels
        return np.repeat(labels.reshape(-1), dataset.rows // labels.size)


class Features:
    """Every feature array of the named files, and the labels that came with them."""

    def __init__(self, files: Sequence[Path], datasets: dict[str, Dataset], labels: dict[str, LabelSet]) -> None:
        self.files = tuple(files)
        """As named, for hashing."""
        self.datasets = datasets
        """By modality, in the order of the files; also those that cannot be features, whose `problem` says why."""
        self.labels = labels
        """By name."""

    def select(self, widths: Collection[int]) -> list[Dataset]:
        """The datasets with one of these widths. InputError that names the widths where none has it, or why none can be used.

        Integer arrays of that width (tokens, say) are passed over as long as there are others; an empty one is an error.
        """
        fitting = [dataset for dataset in self.datasets.values() if dataset.width in widths]
        usable = [dataset for dataset in fitting if not dataset.problem]
        for dataset in fitting:
            if dataset.problem and (not usable or dataset.rows == 0):
                raise dataset.problem
        if not usable:
            raise self._misfit(widths)
        return usable

    def _misfit(self, widths: Collection[int]) -> InputError:
        wanted = " or ".join(str(width) for width in sorted(widths))
        found = ", ".join(f"{printable(d.name, 60)} {d.shape}" for d in list(self.datasets.values())[:6])
        what = f"No dataset of the features has {wanted} channels: there is {found or 'no array of numbers'}."
        if not found:
            return InputError(
                what, "Features are plain arrays (..., channels); ragged ones, text and records are none."
            )
        for dataset in self.datasets.values():
            for axis, length in enumerate(dataset.shape):
                if length in widths:
                    return InputError(
                        what, f"If they lie along axis {axis} of {printable(dataset.name, 60)}: --channel-axis {axis}."
                    )
        return InputError(what, "Record what reaches this quantiser, for instance with toc_cli.capture.")

    def blocks(
        self, name: str, *, start: int = 0, stop: int | None = None, rows_multiple: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """`Dataset.blocks` of a modality."""
        return self.datasets[name].blocks(start=start, stop=stop, rows_multiple=rows_multiple)


def open_features(
    paths: str | Path | Sequence[str | Path],
    *,
    modalities: Sequence[str] = (),
    channel_axis: int | None = None,
    max_memory: int = 1 << 30,
) -> Features:
    """List the feature arrays of .h5, .npy, .npz and .safetensors files; nothing of their data is read.

    A path may be `name=path`. A dataset is named by that name, else by its key (.npy: the file's stem); where two files
    have the same key, by `stem/key`. `modalities` picks by name. `channel_axis` (default -1) holds the channels, the other
    axes are flattened to rows. `max_memory` (bytes) bounds what a pass over a dataset takes.
    InputError for files that cannot be read and picked arrays that cannot be features; UsageError for unknown names.
    """
    entries = [_named(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    found = [(name, path, key, source) for name, path in entries for key, source in open_sources(path).items()]
    labels = [entry for entry in found if _is_label(entry[2], entry[3])]
    arrays = [entry for entry in found if entry not in labels and _axis(entry[3], channel_axis) is not None]
    label_sets = {name: LabelSet(name, e[1], e[2], e[3]) for name, e in zip(_names(labels), labels, strict=True)}
    datasets = {
        name: Dataset(name, e[1], e[2], e[3], _axis(e[3], channel_axis) or 0, max_memory)
        for name, e in zip(_names(arrays), arrays, strict=True)
    }
    if modalities:
        datasets = _pick(datasets, modalities)
    return Features([path for _, path in entries], datasets, label_sets)


Entry = tuple[str, Path, str, Source]


def _named(path: str | Path) -> tuple[str, Path]:
    """Name and path of `name=path`; no name where the whole is a file, or has no `=`."""
    if not str(path):
        raise UsageError("--features names no file.", "Give FILE or NAME=FILE.")
    if isinstance(path, Path) or "=" not in path or os.path.exists(path):
        return "", Path(path)
    name, _, rest = path.partition("=")
    if not name or not rest:
        raise UsageError(f"--features {printable(path)} is neither a file nor NAME=PATH.")
    return name, Path(rest)


def _is_label(key: str, source: Source) -> bool:
    return key.rpartition("/")[2].startswith("label") and source.dtype.kind in "iu" and len(source.shape) > 0


def _axis(source: Source, channel_axis: int | None) -> int | None:
    """The channel axis counted from 0; None where the array has no such axis."""
    ndim = len(source.shape)
    axis = -1 if channel_axis is None else channel_axis
    return axis % ndim if -ndim <= axis < ndim else None


def _names(entries: Sequence[Entry]) -> list[str]:
    """A name for each array: the given one (with the key where its file holds several), the key, or stem/key."""
    keys = [entry[2] for entry in entries]
    names = []
    for given, path, key, _ in entries:
        alone = sum(other[:2] == (given, path) for other in entries) == 1
        if given:
            names.append(given if alone else f"{given}/{key}")
        elif not key:
            names.append(path.stem)
        else:
            names.append(key if keys.count(key) == 1 else f"{path.stem}/{key}")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Two feature arrays would be called {printable(name)}.", "Name them: --features NAME=PATH."
            )
    return names


def _pick(datasets: dict[str, Dataset], modalities: Sequence[str]) -> dict[str, Dataset]:
    for name in modalities:
        if name not in datasets:
            known = ", ".join(printable(known, 60) for known in datasets) or "none"
            raise UsageError(f"There is no modality {printable(name)} in the features.", f"There is: {known}.")
        if problem := datasets[name].problem:
            raise problem
    return {name: datasets[name] for name in modalities}


def check_finite(block: np.ndarray, first: int, dataset: Dataset) -> None:
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
        raise InputError(
            f"{dataset.shown} holds {'NaN' if np.isnan(value) else 'Inf'} in row {first + bad[0]:,}.",
            "Leave such rows out, or find out why the encoder made them.",
        )
