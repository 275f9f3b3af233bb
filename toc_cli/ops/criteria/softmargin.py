"""Weights of dimensions under which the old tokens stay likely: a concave problem, by Frank-Wolfe.

Legend: n rows, K codes, D dimensions, w (D,) weights in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from toc_cli.ops.blocks import total
from toc_cli.ops.criteria.base import Known, Maths, compared, segments
from toc_cli.ops.criteria.codes import terms
from toc_cli.ops.criteria.rows import SAMPLE, Rows, merge_rows, redrawn
from toc_cli.ops.linear import matmul
from toc_cli.ops.scores import Scores, by_variance, falling, shared

STEPS = 8
SHARES = (0.125, 0.25, 0.5)
"""Sizes at which the weights are found: their mean ranks the dimensions, so that one ranking serves every size."""
TEMPERATURE = 0.3
"""Share of the mean quantisation error that softens the choice between codes."""
DRAWS = 5
TILE_ROWS = 256


@dataclass(frozen=True)
class Likelihood:
    """log softmax_k(-sum_d w_d (x_nd - e_kd)^2 / (2 t)) at the chosen code; t is TEMPERATURE times the mean |x - e|^2."""

    rows: Rows
    codes: np.ndarray  # (K, D)

    @cached_property
    def temperature(self) -> float:
        """t; 1 where every row is a code."""
        off = self.rows.x - self.codes[self.rows.tokens]
        return TEMPERATURE * float(np.einsum("nd,nd->", off, off)) / len(off) or 1.0

    def at(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient (D,), means over rows."""
        x, e, value = self.rows.x, self.codes, 0.0
        gradient = np.zeros(len(weights))
        scale = 2 * self.temperature
        squares = e * e
        for start in range(0, len(x), TILE_ROWS):
            own, tokens = x[start : start + TILE_ROWS], self.rows.tokens[start : start + TILE_ROWS]
            logits = (2 * matmul(own * weights, e.T) - np.einsum("kd,d->k", squares, weights)) / scale
            logits -= logits.max(axis=1, keepdims=True)
            q = np.exp(logits)
            mass = q.sum(axis=1, keepdims=True)
            value += float(np.sum(logits[np.arange(len(own)), tokens] - np.log(mass[:, 0])))
            q /= mass
            expected = matmul(q, squares) - 2 * own * matmul(q, e)
            chosen = squares[tokens] - 2 * own * e[tokens]
            gradient += (expected - chosen).sum(axis=0) / scale
        return value / len(x), gradient / len(x)


def soft_weights(likelihoods: Sequence[Likelihood], count: int) -> tuple[np.ndarray, np.ndarray]:
    """w in [0, 1]^D with sum `count` that makes the tokens of all tables likeliest, and the last gradient (D,): STEPS of
    Frank-Wolfe from the even weights."""
    dim = likelihoods[0].codes.shape[1]
    w, gradient = np.full(dim, count / dim), np.zeros(dim)
    for step in range(STEPS):
        gradient = np.sum([each.at(w)[1] for each in likelihoods], axis=0)
        vertex = np.zeros(dim)
        vertex[np.lexsort((np.arange(dim), -gradient))[:count]] = 1
        w += (vertex - w) * (0.5 if step == 0 else 2 / (step + 2))
    return w, gradient


def _rank(group: Sequence[Known]) -> Scores:
    likelihoods = [Likelihood(total(segments(known), merge_rows), compared(known)) for known in group]
    dim = likelihoods[0].codes.shape[1]
    sizes = sorted({max(1, round(share * dim)) for share in SHARES})
    found = [soft_weights(likelihoods, size) for size in sizes]
    weights, gradient = (np.mean(each, axis=0) for each in zip(*found, strict=True))
    order = np.lexsort((np.arange(dim), -gradient, -weights))
    return replace(shared([by_variance(*terms(known)) for known in group]), score=falling(order))


def _draws(group: Sequence[Known], seed: int) -> list[Scores]:
    drawn = [redrawn(known, DRAWS, seed) for known in group]
    return [_rank(row) for row in zip(*drawn, strict=True)]


SOFTMARGIN = Maths(_rank, _draws, SAMPLE)
