"""Classes that came with the features: an integer `label…` array along the first axes of a modality, or over its units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.features.part import Part
from toc_cli.io.features.source import Opened
from toc_cli.io.features.stream import Stream
from toc_cli.io.names import printable

LABEL_LIMIT = 1 << 30
"""Bytes of labels that are loaded whole."""


class LabelSet:
    """One class per index of the first lead axes of a modality, or per unit of it; in one array, or in one array per part."""

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        self.name = name
        self.parts = tuple(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored; the number of labels, where several arrays hold them."""
        if len(self.parts) == 1:
            return self.parts[0].source.shape
        return (sum(math.prod(part.source.shape) for part in self.parts),)

    @property
    def shown(self) -> str:
        """File, name and shape, for messages."""
        return f"{printable(self.parts[0].path)}: {printable(self.name)} {self.shape}"

    def fits(self, stream: Stream) -> bool:
        """Whether there is a label for each row of a modality."""
        return self._rows_each(stream.whole) is not None

    def _rows_each(self, stream: Stream) -> np.ndarray | None:
        """(labels,) how many rows each label stands for; None where they don't fit."""
        bounds = stream.bounds
        if len(self.parts) > 1:
            return self._rows_of_parts(stream)
        if self.shape and stream.lead_shape[: len(self.shape)] == self.shape:
            count = math.prod(self.shape)
            return np.full(count, stream.rows // max(1, count))
        if bounds is not None and math.prod(self.shape) == len(bounds) - 1 and len(self.shape) == 1:
            return np.diff(bounds)
        if len(stream.parts) > 1 and self.shape == (len(stream.parts),):
            return np.diff(stream.firsts)
        return None

    def _rows_of_parts(self, stream: Stream) -> np.ndarray | None:
        if [part.id for part in self.parts] != [part.id for part in stream.parts]:
            return None
        counts = []
        for labels, part in zip(self.parts, stream.parts, strict=True):
            shape = labels.source.shape
            count = math.prod(shape)
            if count != 1 and part.lead_shape[: len(shape)] != shape:
                return None
            counts.append(np.full(count, part.rows // max(1, count)))
        return np.concatenate(counts)

    def read(self) -> np.ndarray:
        """The labels as int64, in their stored shape; one after the other, where several arrays hold them."""
        if math.prod(self.shape) * 8 > LABEL_LIMIT:
            raise InputError(f"{self.shown} is too large for labels.")
        with Opened(1 << 20) as opened:
            found = [_read(part, opened) for part in self.parts]
        return found[0] if len(found) == 1 else np.concatenate([labels.reshape(-1) for labels in found])

    def for_rows(self, stream: Stream, labels: np.ndarray | None = None) -> np.ndarray:
        """The label of each row of a modality (rows,): a clip's label stands for all of its rows."""
        each = self._rows_each(stream.whole)
        if each is None:
            raise InputError(
                f"{printable(self.parts[0].path)}: labels {printable(self.name)} {self.shape} do not fit {stream.shown}.",
                "Labels stand along the first axes of the features, or one for each clip or file.",
            )
        labels = self.read() if labels is None else labels
        of_row = np.repeat(labels.reshape(-1), each)
        return of_row if stream.whole is stream else of_row[stream.positions]


def _read(part: Part, opened: Opened) -> np.ndarray:
    """The labels of one array; the last axis plays the channels, and a single number has one."""
    source = part.source
    labels = np.empty((math.prod(source.shape[:-1]), source.shape[-1] if source.shape else 1), part.dtype)
    source.reader(max(0, len(source.shape) - 1), opened).read(0, len(labels), labels)
    return labels.reshape(source.shape).astype(np.int64)
