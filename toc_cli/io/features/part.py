"""A part of a modality: an array of a file, or some rows of one.

Legend: it has lead axes (clips, time, height, …), flattened to rows in C order, and one channel axis of width W. A unit is what was
sampled as a whole: a clip, an utterance, a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toc_cli.io.features.source import Source
from toc_cli.io.names import printable


@dataclass(frozen=True)
class Part:
    """An array, or rows start … stop of it."""

    path: Path
    key: str
    """Its key inside the file; "" for .npy."""
    source: Source = field(repr=False, compare=False)
    axis: int
    """The channel axis, counted from 0."""
    id: tuple[str, ...] = ()
    """What tells it from the other parts of its stream: the numbers, or the names, of its file and groups."""
    start: int = 0
    stop: int = -1
    """-1: the last."""

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """The array's axes but the channel axis."""
        return tuple(n for i, n in enumerate(self.source.shape) if i != self.axis)

    @property
    def whole_rows(self) -> int:
        """Rows of the array."""
        return math.prod(self.lead_shape)

    @property
    def end(self) -> int:
        """The row after its last."""
        return self.whole_rows if self.stop < 0 else self.stop

    @property
    def rows(self) -> int:
        """Number of feature vectors."""
        return self.end - self.start

    @property
    def width(self) -> int:
        """The length of the channel axis."""
        return self.source.shape[self.axis]

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored, in native byte order; bfloat16 shows as float32."""
        return self.source.dtype.newbyteorder("=")

    @property
    def shown(self) -> str:
        """File, key and shape, for messages."""
        return f"{printable(self.path)}: {printable(self.key) + ' ' if self.key else ''}{self.source.shape}"

    def along(self, axis: int) -> Part:
        """The same array with its channels along another axis."""
        return replace(self, axis=axis % len(self.source.shape))

    def unit_starts(self) -> np.ndarray:
        """First row, counted from its own first, of each unit in it: its items where it has several lead axes, what its
        file declares, else itself."""
        if self.source.bounds is not None:
            starts = self.source.bounds[:-1]
        elif len(self.lead_shape) > 1:
            starts = np.arange(self.lead_shape[0]) * math.prod(self.lead_shape[1:])
        else:
            return np.zeros(1, dtype=np.int64)
        inside = starts[(starts > self.start) & (starts < self.end)] - self.start
        return np.concatenate([[0], inside])
