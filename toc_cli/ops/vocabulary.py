"""Rows of a language model's tables, one per token, that follow a cut of codes.

Legend: V rows, K codes, K' kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from toc_cli.ops.linear import float64


@dataclass(frozen=True)
class Span:
    """K rows of a table that are the codes of one level and head."""

    start: int
    """The row of code 0."""
    new: torch.Tensor
    """(K,) int64: old id to new id, -1 for codes that vanish."""
    usage: np.ndarray
    """(K,) how often each old code was chosen."""

    @property
    def end(self) -> int:
        """The row after the last code's."""
        return self.start + len(self.new)

    def mixed(self) -> list[tuple[int, np.ndarray]]:
        """New ids that several old codes merged into, with those."""
        new = self.new.numpy()
        counts = np.bincount(new[new >= 0])
        return [(int(id), np.flatnonzero(new == id)) for id in np.flatnonzero(counts > 1)]


def new_rows(rows: int, spans: Sequence[Span]) -> np.ndarray:
    """(V,) where each of V rows stands after the cut, -1 for one that is gone; spans ascend and do not overlap."""
    found, at, gone = np.arange(rows), 0, 0
    for span in spans:
        if span.start < at or span.end > rows:
            raise ValueError("spans overlap or leave the table")
        found[at : span.start] -= gone
        new = span.new.numpy()
        found[span.start : span.end] = np.where(new >= 0, new + span.start - gone, -1)
        gone += len(new) - (int(new.max()) + 1)
        at = span.end
    found[at:] -= gone
    return found


def cut_rows(table: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """The table (V, …) with a row for each code that is left: its own, or the mean by usage of those that merged into it (the plain
    mean where none of them was ever chosen). Rows outside of the spans stay as they are, in their order."""
    places = new_rows(len(table), spans)
    kept = np.flatnonzero(places >= 0)
    first = kept[np.unique(places[kept], return_index=True)[1]]
    cut = table[torch.from_numpy(first)].clone()
    for span in spans:
        for _, members in span.mixed():
            weights = span.usage[members].astype(np.float64)
            weights = weights / weights.sum() if weights.sum() else np.full(len(members), 1 / len(members))
            rows = float64(table[torch.from_numpy(span.start + members)])
            mean = (weights.reshape(-1, *[1] * (rows.ndim - 1)) * rows).sum(0)
            cut[places[span.start + members[0]]] = torch.from_numpy(np.asarray(mean)).to(table.dtype)
    return cut
