"""Which rows of a stream stand for all of them: runs of contiguous rows, spread over its units.

Legend: U units, G runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PIECES = 128
"""Runs of a sample: enough for an interval, each long enough to read at once."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, less their whole part, are spread evenly over 0 … 1."""


def spread(rows: int, bounds: np.ndarray | None, wanted: int) -> list[tuple[int, int]]:
    """(start, stop) of at most PIECES runs of rows, ascending, that hold exactly `wanted` of `rows` rows.

    The rows are cut into groups of whole units (`bounds` (U + 1,); None: rows that are their own), and each group gives
    its share of the rows as one run. Where in its group a run lies is spread too, so that no place within a unit (its
    beginning, say) stands for all. All rows: the groups themselves.
    """
    units = rows if bounds is None else len(bounds) - 1
    count = min(PIECES, units, wanted)
    edges = np.arange(count + 1) * units // max(1, count)
    edges = edges if bounds is None else bounds[edges]
    ends = [int(edge) * wanted // rows for edge in edges]
    found = []
    for at in range(count):
        first, size, share = int(edges[at]), int(edges[at + 1] - edges[at]), ends[at + 1] - ends[at]
        start = first + int((at * GOLDEN % 1) * (size - share + 1))
        if share:
            found.append((start, start + share))
    return found


def within(held: Sequence[tuple[int, int, np.ndarray]], start: int, stop: int) -> np.ndarray | None:
    """Rows start … stop out of runs (start, stop, rows) that are held in memory; None where they are not, or not all."""
    for first, end, rows in held:
        if first <= start and stop <= end:
            return rows[start - first : stop - first] if len(rows) == end - first else None
    return None
