"""Criteria whose dimensions are the leading components of a rotation."""

from __future__ import annotations

from collections.abc import Sequence

from toc_cli.ops.blocks import total
from toc_cli.ops.criteria.base import Known, Maths, Reduction, Side, chosen_codes, compared, counts, segments
from toc_cli.ops.linear import float64, unit_rows
from toc_cli.ops.moments import cross_moments, merge_cross
from toc_cli.ops.rotation import Rotation, discriminant, pca, usage_covariance, xcov
from toc_cli.ops.scatter import Scatter, merge_scatter, scatter, within
from toc_cli.ops.stability import discriminant_draws, pca_draws, xcov_draws


def _pca(group: Sequence[Known]) -> Rotation:
    return pca([known.scored for known in group], [counts(known) for known in group])


def _pca_draws(group: Sequence[Known], seed: int) -> list[Rotation]:
    return pca_draws([known.scored for known in group], [counts(known) for known in group], seed=seed)


def _xcov(group: Sequence[Known]) -> Rotation:
    return xcov([total(units, merge_cross) for known in group for units in known.streams])


def _xcov_draws(group: Sequence[Known], seed: int) -> list[Rotation]:
    return xcov_draws([units for known in group for units in known.streams], seed=seed)


def _scatter(known: Known, side: Side) -> Scatter:
    x = unit_rows(side.x) if known.unit else float64(side.x)
    return scatter(x, chosen_codes(known, side.tokens), side.tokens, len(known.codes))


def _discriminant(group: Sequence[Known]) -> Rotation:
    states = [total(segments(known), merge_scatter) for known in group]
    between = [usage_covariance(compared(known), state.usage) for known, state in zip(group, states, strict=True)]
    return discriminant(sum(between[1:], between[0]), sum(map(within, states[1:]), within(states[0])))


def _discriminant_draws(group: Sequence[Known], seed: int) -> list[Rotation]:
    return discriminant_draws([compared(known) for known in group], [segments(known) for known in group], seed=seed)


PCA = Maths(_pca, _pca_draws)
XCOV = Maths(
    _xcov,
    _xcov_draws,
    Reduction("pairs", lambda known, *sides: cross_moments(*(side.x for side in sides)), merge_cross, square=True),
)
DISCRIMINANT = Maths(_discriminant, _discriminant_draws, Reduction("modalities", _scatter, merge_scatter, square=True))
