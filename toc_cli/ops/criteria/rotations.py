"""Criteria whose dimensions are the leading components of a rotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from toc_cli.ops.blocks import total
from toc_cli.ops.criteria.base import Known, Maths, Reduction, Side, compared, counts, segments
from toc_cli.ops.moments import cross_moments, merge_cross
from toc_cli.ops.rotation import Rotation, discriminant, pca, usage_covariance, xcov
from toc_cli.ops.scatter import Scatter, merge_scatter, scatter, stride, within
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
    tokens, step = np.asarray(side.tokens), stride(side.rows)
    own = slice(-side.start % step, None, step)  # every step-th row of the stream, wherever blocks begin
    codes = torch.as_tensor(known.codes)
    usage = np.bincount(tokens, minlength=len(codes))
    return scatter(torch.as_tensor(side.x)[own], codes, torch.as_tensor(tokens[own]), usage, known.unit)


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
