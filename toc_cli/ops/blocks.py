"""The fixed grid of row blocks under every streamed sum: results do not depend on the reader's chunks or the ranks.

A block is a run of contiguous rows whose boundaries follow from the number of rows alone. Each block is summed by
itself, blocks are merged in order inside a segment, segments in order; a rank owns whole segments. Blocks are also the
units of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

State = TypeVar("State")

MOST_BLOCKS = 512
"""Blocks that a stream is cut into, as long as a block has at most MOST_ROWS."""
MOST_ROWS = 4096
"""Rows of a block, however long the stream: a block is held in memory."""
LEAST_ROWS = 16
SEGMENTS = 32


@dataclass(frozen=True)
class Grid:
    """Blocks of `block` rows over `rows` rows; the last one may be shorter."""

    rows: int
    block: int
    """Rows per block: a power of two."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block)

    @property
    def per_segment(self) -> int:
        """Blocks per segment."""
        return max(1, -(-self.blocks // SEGMENTS))

    def bounds(self, index: int) -> tuple[int, int]:
        """First row and end row of block `index`."""
        return index * self.block, min(self.rows, (index + 1) * self.block)

    def share(self, rank: int, ranks: int) -> range:
        """The blocks of one rank: whole segments, contiguous, in rank order."""
        segments = -(-self.blocks // self.per_segment)
        first, end = rank * segments // ranks, (rank + 1) * segments // ranks
        return range(first * self.per_segment, min(self.blocks, end * self.per_segment))


def grid(rows: int) -> Grid:
    """The grid over `rows` rows: the smallest power-of-two block, from 16 to 4096 rows, that gives at most 512 blocks."""
    block = LEAST_ROWS
    while block * MOST_BLOCKS < rows and block < MOST_ROWS:
        block *= 2
    return Grid(rows, block)


def split(chunks: Iterable[np.ndarray], block: int) -> Iterator[np.ndarray]:
    """Re-cut a stream of (n, W) chunks of any length into blocks of exactly `block` rows; the last may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            piece = chunk[start : start + block - count]
            held.append(piece)
            count += len(piece)
            start += len(piece)
            if count == block:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held, count = [], 0
    if count:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def fold(states: Iterable[State], merge: Callable[[State, State], State], per_segment: int) -> list[State]:
    """Merge block states (in block order, starting at a segment's first block) into one state per segment."""
    segments: list[State] = []
    for index, state in enumerate(states):
        extend(segments, index, state, merge, per_segment)
    return segments


def extend(
    segments: list[State], index: int, state: State, merge: Callable[[State, State], State], per_segment: int
) -> None:
    """One step of `fold`: take in the state of block `index`, counted from the first of these segments."""
    if index % per_segment:
        segments[-1] = merge(segments[-1], state)
    else:
        segments.append(state)


def total(segments: Sequence[State], merge: Callable[[State, State], State]) -> State:
    """Merge the segments' states, in order: the last step, once the ranks' segments lie together."""
    result = segments[0]
    for state in segments[1:]:
        result = merge(result, state)
    return result
