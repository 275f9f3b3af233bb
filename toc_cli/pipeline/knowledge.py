"""What a criterion is told of a study: its tables one by one, and which of them keep one set of dimensions."""

from __future__ import annotations

from dataclasses import replace

from toc_cli.ops.blocks import grid
from toc_cli.ops.criteria.base import Known
from toc_cli.ops.criterion import CRITERIA
from toc_cli.pipeline.census import pairs_of
from toc_cli.pipeline.source import Source
from toc_cli.pipeline.study import Study


def groups(source: Source) -> list[list[list[tuple[int, int]]]]:
    """The (level, head) of every set of dimensions that is chosen on its own, (levels that choose) x (heads that choose):
    levels share one set unless they have their own projections, heads have their own unless they share one table."""
    levels = _sets(len(source.full.levels), source.book.own_dims_per_level)
    heads = _sets(source.full.heads, source.book.own_dims_per_head)
    return [[[(level, head) for level in row for head in column] for column in heads] for row in levels]


def _sets(count: int, own: bool) -> list[list[int]]:
    return [[at] for at in range(count)] if own else [list(range(count))]


def table(study: Study, place: tuple[int, int], seed: int) -> Known:
    """The codes of one (level, head) and how they are compared, before any feature is read."""
    level, head = place
    return Known(
        study.full.levels[level].codes[head],
        weights=study.options.weights,
        normalize=study.options.normalize,
        metric=study.full.metric,
        seed=seed,
        place=place,
    )


def known(study: Study, criterion: str, place: tuple[int, int], seed: int) -> Known:
    """The same with what the features say."""
    level, head = place
    census, row = study.census, CRITERIA[criterion]
    streams = census.sums[criterion][place] if row.maths.reads else ()
    return replace(table(study, place, seed), usage=census.pooled[level][head], streams=streams)


def held_bytes(study: Study, criterion: str) -> int:
    """What the sums of a criterion take while they are made: one matrix per segment, level, head and stream of rows."""
    reads = CRITERIA[criterion].maths.reads
    if reads is None or not reads.square:
        return 0
    streams = [a for a, _ in pairs_of(study.fits)] if reads.over == "pairs" else study.fits
    grids = [grid(fit.dataset.rows) for fit in streams]
    segments = sum(-(-each.blocks // each.per_segment) for each in grids)
    return segments * len(study.full.levels) * study.full.heads * study.full.dim**2 * 8
