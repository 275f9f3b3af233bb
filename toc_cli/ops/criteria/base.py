"""What a criterion is given and what it must give.

Legend: N features, n rows of a block, K codes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from toc_cli.ops.linear import Array, float64, unit_rows
from toc_cli.ops.rotation import Rotation
from toc_cli.ops.scores import TOC_WEIGHTS, Scores


@dataclass(frozen=True)
class Known:
    """What is known of one table of codes: of one level and head."""

    codes: Array
    """(K, D)."""
    usage: Array | None = None
    """(K,) how often the features choose each code."""
    streams: Sequence[Sequence[Any]] = ()
    """Per stream of rows the states of its segments, as `Maths.reads` makes them: one stream over all modalities, or one for
    those that are paired."""
    weights: tuple[float, float] = TOC_WEIGHTS
    """(w_sim, w_var)."""
    normalize: Literal["none", "l2"] = "none"
    """l2: unit-length codes are scored."""
    metric: str = "euclidean"
    """Of the lookup."""
    seed: int = 0
    place: tuple[int, int] = (0, 0)
    """(level, head)."""

    @cached_property
    def scored(self) -> Array:
        """The codes (K, D) whose variance and similarity count."""
        return unit_rows(self.codes) if self.normalize == "l2" else self.codes

    @property
    def unit(self) -> bool:
        """Whether features and codes are compared at unit length."""
        return self.normalize == "l2" or self.metric == "cosine"

    def lacks(self, need: str) -> bool:
        """Whether what a `Criterion.need` names is missing."""
        return self.usage is None if need == "usage" else need in ("features", "pairs") and not self.streams


@dataclass(frozen=True)
class Side:
    """A block of one modality as it meets one table of codes."""

    x: Array
    """(n, D), the residual at a later level."""
    tokens: Array
    """(n,) int64, the code that all dimensions choose."""
    start: int = 0
    """Place of its first row among the rows of all modalities."""
    rows: int = 0
    """Rows of all modalities."""


@dataclass(frozen=True)
class Reduction:
    """What to sum over the features, block by block; blocks are merged in order, so that no rank or chunk shows."""

    over: Literal["modalities", "pairs"]
    """Every modality by itself, or all modalities that are paired row by row, together."""
    single: Callable[..., Any]
    """(known, side) or, over pairs, (known, side, side, …) to the state of one block; these have no tokens unless the features
    that meet a level depend on them."""
    merge: Callable[[Any, Any], Any]
    square: bool = False
    """Whether a state holds (D, D) float64."""


Ranked: TypeAlias = Scores | Rotation


@dataclass(frozen=True)
class Maths:
    """What a criterion computes. The tables of a group keep one set of dimensions: the levels and heads that share it."""

    rank: Callable[[Sequence[Known]], Ranked]
    draws: Callable[[Sequence[Known], int], Sequence[Ranked]] | None = None
    """The same on resamples under a seed: would another sample keep the same? None: nothing is resampled."""
    reads: Reduction | None = None
    """What it sums over the features beside usage."""


def counts(known: Known) -> Array:
    """Usage (K,) of a criterion that needs it."""
    assert known.usage is not None
    return known.usage


def segments(known: Known) -> Sequence[Any]:
    """The states of all modalities' segments, in order."""
    return known.streams[0]


def compared(known: Known) -> np.ndarray:
    """The codes (K, D) float64 as features are compared with them."""
    return unit_rows(known.codes) if known.unit else float64(known.codes)
