"""What a criterion is told of a study: its tables one by one, and which of them keep one set of dimensions."""

from __future__ import annotations

from dataclasses import replace

from toc_cli.ops.criteria.base import Known
from toc_cli.ops.criterion import CRITERIA
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
