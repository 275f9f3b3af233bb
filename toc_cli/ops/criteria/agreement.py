"""Greedy choice of dimensions that keep the old token in front: the mean reciprocal rank of the code that all dimensions choose.

Legend: n rows, K codes, D dimensions, C candidate codes of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from toc_cli.ops.criteria.base import Known, Maths, compared, counts
from toc_cli.ops.criteria.codes import terms
from toc_cli.ops.criteria.rows import ROWS, SAMPLE, Contest, contest, redrawn
from toc_cli.ops.rotation import usage_covariance
from toc_cli.ops.scores import Scores, by_variance, falling, shared

WORK = 1_000_000_000
"""Most costs that one greedy choice looks at: a few seconds."""
LEAST_CODES = 64
"""Competitors of a row that stay where the work is too much for all codes; then rows go."""
DRAWS = 5


def reciprocal_rank(distances: torch.Tensor, chosen: torch.Tensor) -> float:
    """Mean over rows of 1 / (1 + rank of the chosen code) among distances (n, C); `chosen` (n, 1) is its place. Ties stand
    at their middle: a dimension that tells nothing apart ranks nothing first."""
    # codes ahead less codes behind: whole numbers, exact in float32 whatever the order of summation
    lead = (distances.gather(1, chosen) - distances).sign_().sum(dim=1).double().numpy()
    return float(np.mean(2 / (distances.shape[1] + 1 + lead)))


def greedy(contests: Sequence[Contest], variance: np.ndarray) -> np.ndarray:
    """Dimensions (D,) in the order of choice: each step adds the one with the largest sum of reciprocal ranks over the tables
    that share them. Ties go to the larger usage `variance` (D,), then to the smaller index; so does all that is left once
    every row has its code in front."""
    left = sorted(range(len(variance)), key=lambda d: (-variance[d], d))
    distances = [torch.zeros(()) for _ in contests]
    order: list[int] = []
    while left:
        values = [
            sum(
                reciprocal_rank(sofar + each.cost(d), each.chosen)
                for each, sofar in zip(contests, distances, strict=True)
            )
            for d in left
        ]
        best = int(np.argmax(values))
        order.append(left.pop(best))
        distances = [sofar + each.cost(order[-1]) for each, sofar in zip(contests, distances, strict=True)]
        if values[best] == len(contests):
            break
    return np.array(order + left)


def _size(group: Sequence[Known]) -> tuple[int, int]:
    """Rows and candidates per row that the work allows."""
    codes, dim = group[0].codes.shape
    steps = len(group) * dim * (dim + 1) // 2
    most = max(min(codes, LEAST_CODES), WORK // (steps * ROWS))
    return max(LEAST_CODES, min(ROWS, WORK // (steps * min(codes, most)))), most


def _rank(group: Sequence[Known]) -> Scores:
    rows, most = _size(group)
    return _ordered(group, [contest(known, rows, most) for known in group])


def _draws(group: Sequence[Known], seed: int) -> list[Scores]:
    """On resamples of the segments, with a quarter of the rows each: the choice is dear."""
    rows, most = _size(group)
    drawn = [redrawn(known, DRAWS, seed) for known in group]
    return [_ordered(row, [contest(known, rows // 4, most) for known in row]) for row in zip(*drawn, strict=True)]


def _ordered(group: Sequence[Known], contests: Sequence[Contest]) -> Scores:
    covariances = [usage_covariance(compared(known), counts(known)) for known in group]
    order = greedy(contests, np.sum([np.diag(each) for each in covariances], axis=0))
    return replace(shared([by_variance(*terms(known)) for known in group]), score=falling(order))


AGREEMENT = Maths(_rank, _draws, SAMPLE)
