"""`--budget` and `--bytes`: how many dimensions each codebook of a model keeps, of one budget for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from toc_cli.errors import UsageError
from toc_cli.io.families.offered import UNEVEN
from toc_cli.ops.budget import Points, by_exchange, by_gain, by_need
from toc_cli.ops.geometry import usage_rank
from toc_cli.ops.selection import Size, one_size
from toc_cli.pipeline.curve import Figures
from toc_cli.pipeline.study import Study

TRIED = 24
"""Sizes at which each of several codebooks is measured."""

EXCHANGED = 96
"""Splits of one codebook's bytes over its levels that are measured, about."""


class Search(Protocol):
    """What measures one codebook on the part of the units that is chosen on."""

    def figures(self, counts: Sequence[Size]) -> Sequence[Figures]:
        """At several sizes, each of the criterion that is best there."""

    def figures_of_best(self, at: Size, counts: Sequence[Size]) -> Sequence[Figures]:
        """At several sizes, all of the criterion that is best at the size `at`."""


def needed(study: Study) -> int:
    """The usage rank, rounded up, of the table that needs most."""
    tables = zip(study.full.levels, study.census.pooled, strict=True)
    ranks = [usage_rank(codes, n) for level, used in tables for codes, n in zip(level.codes.cpu(), used, strict=True)]
    return min(study.full.dim, max(1, math.ceil(max(ranks))))


def bytes_each(study: Study) -> int:
    """Bytes of the codes for each dimension that is kept, over levels and heads."""
    return sum(bytes_of_levels(study))


def bytes_of_levels(study: Study) -> list[int]:
    """The same of each level."""
    return [table.shape[0] * table.shape[1] * table.dtype.itemsize for table in study.source.parts.tables]


def refuse_budget(studies: Sequence[Study]) -> None:
    """UsageError for a budget that leaves a codebook without a dimension, or has more than there are."""
    options, count = studies[0].options, len(studies)
    if options.budget is not None:
        most = sum(study.full.dim for study in studies)
        if not count <= options.budget <= most:
            books = "1 codebook has" if count == 1 else f"{count} codebooks have"
            raise UsageError(f"--budget {options.budget}: {books} {most} dimensions.", f"Use {count} to {most}.")
    if options.bytes is not None and options.bytes < (least := sum(map(bytes_each, studies))):
        raise UsageError(
            f"--bytes {options.bytes}: the codes take {least:,} bytes with one dimension of each codebook.",
            f"Use at least {least}, or keep fewer codes or levels (--codes, --levels).",
        )


def by_rows(studies: Sequence[Study], budget: int) -> tuple[list[int], dict[str, Any]]:
    """Sizes for `--budget`, and the record's `budget`: the codebook with most rows a unit (clip) first, each what it needs."""
    rows = [_rows_per_unit(study) for study in studies]
    order = sorted(range(len(studies)), key=lambda at: (-rows[at], at))
    needs = [needed(study) for study in studies]
    taken = dict(zip(order, by_need([needs[at] for at in order], budget), strict=True))
    sizes = evened(studies, [taken[at] for at in range(len(studies))], [1] * len(studies))
    books = [
        {"id": study.source.id, "kept": size, "needed": need, "rows_per_unit": each}
        for study, size, need, each in zip(studies, sizes, needs, rows, strict=True)
    ]
    return sizes, {"of": "dimensions", "asked": budget, "taken": sum(sizes), "by": "usage_rank", "codebooks": books}


def by_bytes(studies: Sequence[Study], searches: Sequence[Search], budget: int) -> tuple[list[Size], dict[str, Any]]:
    """Sizes for `--bytes`, and the record's `budget`: the most that fits of a lone codebook; of several, the step that saves most
    distortion for its bytes, again and again; then each one's bytes over its levels, where the asked forms can hold that.
    Distortion is each codebook's excess over its own, row by row of the features."""
    refuse_budget(studies)
    each, dims = [bytes_each(study) for study in studies], [study.full.dim for study in studies]
    spare = budget - sum(each)
    grids = [_grid(min(dim, 1 + spare // cost)) for dim, cost in zip(dims, each, strict=True)]
    by = "excess_distortion"
    if len(studies) == 1:
        sizes = [grids[0][-1]]
    else:
        found = [search.figures(grid) for search, grid in zip(searches, grids, strict=True)]
        if any(point["excess_distortion"] is None for points in found for point in points):
            by = "token_agreement"
        rows = [study.census.rows for study in studies]
        curves = [
            [(cost * size, share * _loss(point, by)) for size, point in zip(grid, points, strict=True)]
            for grid, points, cost, share in zip(grids, found, each, rows, strict=True)
        ]
        sizes = [grid[at] for grid, at in zip(grids, by_gain(curves, budget), strict=True)]
        sizes = _filled(sizes, curves, each, dims, budget)
    sizes = evened(studies, sizes, each)
    left = budget - sum(size * cost for size, cost in zip(sizes, each, strict=True))
    final: list[Size] = []
    books: list[dict[str, Any]] = []
    for study, search, size in zip(studies, searches, sizes, strict=True):
        split, left = over_levels(study, search, size, left)
        final.append(one_size(split))
        taken = sum(count * cost for count, cost in zip(split, bytes_of_levels(study), strict=True))
        more = {} if isinstance(final[-1], int) else {"kept_dims": list(split)}
        books.append({"id": study.source.id, "kept": max(split), **more, "bytes": taken})
    taken = sum(book["bytes"] for book in books)
    return final, {"of": "bytes", "asked": budget, "taken": taken, "by": by, "codebooks": books}


def over_levels(study: Study, search: Search, size: int, left: int) -> tuple[tuple[int, ...], int]:
    """Sizes of the levels of a residual codebook, for the bytes of `size` dimensions of each and those `left`, and what is left then;
    `size` for all where the asked forms hold no other."""
    costs = bytes_of_levels(study)
    even = (size,) * len(costs)
    if not study.full.residual or any(mode in UNEVEN for mode in study.options.emit):
        return even, left
    by = "excess_distortion"
    if search.figures([size])[0][by] is None:
        by = "token_agreement"

    def losses(splits: Sequence[tuple[int, ...]]) -> list[float]:
        points = search.figures_of_best(size, [one_size(split) for split in splits])
        return [_loss(point, by) for point in points]

    budget = size * sum(costs) + left
    split = by_exchange(even, costs, [study.full.dim] * len(costs), budget, losses, EXCHANGED)
    return split, budget - sum(count * cost for count, cost in zip(split, costs, strict=True))


def evened(studies: Sequence[Study], sizes: Sequence[int], each: Sequence[int]) -> list[int]:
    """Sizes with one for all codebooks that the sliced form cuts to one: what they take together, shared out by cost."""
    same = list(sizes)
    words = [study.source.book.together if "sliced" in study.options.emit else "" for study in studies]
    for word in {word for word in words if word}:
        places = [at for at, other in enumerate(words) if other == word]
        most = min(studies[at].full.dim for at in places)
        one = sum(sizes[at] * each[at] for at in places) // sum(each[at] for at in places)
        same = [min(one, most) if at in places else size for at, size in enumerate(same)]
    return same


def _filled(
    sizes: Sequence[int], curves: Sequence[Points], each: Sequence[int], dims: Sequence[int], budget: int
) -> list[int]:
    """Sizes with what is left below a measured step handed out, dimension by dimension, to the codebook that loses most."""
    filled = list(sizes)
    lost = [next(loss for cost, loss in curve if cost == each[at] * sizes[at]) for at, curve in enumerate(curves)]
    for at in sorted(range(len(filled)), key=lambda at: (-lost[at], at)):
        left = budget - sum(size * cost for size, cost in zip(filled, each, strict=True))
        filled[at] = min(dims[at], filled[at] + left // each[at])
    return filled


def _loss(point: Figures, by: str) -> float:
    value = point[by]
    assert value is not None
    return value if by == "excess_distortion" else 1 - value


def _grid(most: int) -> list[int]:
    """1 … most: all sizes, or TRIED of them, closer together where they are small."""
    if most <= TRIED:
        return list(range(1, most + 1))
    return sorted({round(size) for size in np.geomspace(1, most, TRIED)})


def _rows_per_unit(study: Study) -> float:
    """Rows of a clip (a file, an utterance), over all modalities; plain rows are a unit each."""
    streams = [fit.dataset for fit in study.fits]
    units = [stream.rows if stream.bounds is None else stream.units_in([(0, stream.rows)]) for stream in streams]
    return sum(stream.rows for stream in streams) / sum(units)
