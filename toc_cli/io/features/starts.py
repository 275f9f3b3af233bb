"""Where the units of an array begin, as a dataset beside it says: `NAME.starts` (U + 1,) for `NAME`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.features.source import Opened, Source
from toc_cli.io.names import printable

STARTS = ".starts"
"""What the name of the dataset adds to that of its features."""
STARTS_LIMIT = 1 << 28
"""Bytes of such a dataset."""


def with_starts(path: Path, sources: dict[str, Source]) -> dict[str, Source]:
    """The arrays of a file but those that only say where the units of another begin; InputError where they can't."""
    for name in [key for key in sources if key.endswith(STARTS) and key.removesuffix(STARTS) in sources]:
        starts, array = sources.pop(name), sources[name.removesuffix(STARTS)]
        rows = math.prod(array.shape[:-1])
        if starts.dtype.kind not in "iu" or len(starts.shape) != 1 or math.prod(starts.shape) * 8 > STARTS_LIMIT:
            raise InputError(
                f"{printable(path)}: {printable(name)} {starts.shape} of {starts.dtype} are no row numbers."
            )
        bounds = _read(starts)
        if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != rows or (np.diff(bounds) < 0).any():
            raise InputError(
                f"{printable(path)}: {printable(name)} does not rise from 0 to the {rows:,} rows of "
                f"{printable(name.removesuffix(STARTS))}.",
                "It holds the first row of each file, and the number of rows.",
            )
        array.bounds, array.unit = np.unique(bounds), "files"
    return sources


def _read(source: Source) -> np.ndarray:
    values = np.empty((1, source.shape[0]), source.dtype.newbyteorder("="))
    with Opened(1 << 20) as opened:
        source.reader(0, opened).read(0, 1, values)
    return values[0].astype(np.int64)
