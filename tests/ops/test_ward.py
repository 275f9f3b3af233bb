"""Ward's merges without the table of all distances, against looking at every pair before every merge."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toc_cli.ops import ward as room
from toc_cli.ops.ward import in_order, ward


def slow(points: np.ndarray, weights: np.ndarray) -> list[tuple[int, int]]:
    """Every pair before every merge, ties to the smaller indices."""
    clusters = {at: (point, float(weight)) for at, (point, weight) in enumerate(zip(points, weights, strict=True))}
    done = []
    while len(clusters) > 1:
        costs = []
        for a, b in combinations(sorted(clusters), 2):
            (one, n), (two, m) = clusters[a], clusters[b]
            costs.append((n * m / (n + m) * ((one - two) ** 2).sum(), a, b))
        _, a, b = min(costs)
        (one, n), (two, m) = clusters[a], clusters.pop(b)
        clusters[a] = ((n * one + m * two) / (n + m), n + m)
        done.append((a, b))
    return done


def drawn(seed: int, count: int, dim: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count, dim))
    weights = rng.integers(1, 9, count).astype(float)
    if kind == "skewed":
        weights = np.ceil(rng.pareto(0.5, count) * 3) + 1
    elif kind == "near":
        points = points[rng.integers(0, max(1, count // 4), count)] + 1e-5 * rng.standard_normal((count, dim))
    elif kind == "huge":
        points *= 1e150
    elif kind == "tiny":
        points *= 1e-140
    return points, weights


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from(("plain", "skewed", "near", "huge", "tiny")),
    st.sampled_from((1, 2, 5, 64)),
)
def test_merges_are_those_of_looking_at_every_pair(seed: int, count: int, dim: int, kind: str, looked: int) -> None:
    points, weights = drawn(seed, count, dim, kind)
    expected = slow(points, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "LEAST_LOOKED", looked)
        patch.setattr(room, "TILE", 16)
        patch.setattr(room, "GROUP", 8)
        for merges in (0, count // 3, count - 1):
            assert ward(points, weights, merges) == expected[:merges]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 24))
def test_ties_go_to_the_smaller_indices(seed: int, count: int) -> None:
    """Equal points, and equal weights that are powers of two, cost the same to the last bit."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 3, (count, 2)).astype(float) * 4
    weights = np.full(count, 2.0)
    expected = slow(points, weights)
    zero = sum(bool((points[:at] == points[at]).all(1).any()) for at in range(count))
    assert ward(points, weights, zero) == expected[:zero]


@pytest.mark.parametrize("kind", ["plain", "skewed", "near"])
def test_many_points_take_the_same_road_on_any_number_of_threads(kind: str) -> None:
    points, weights = drawn(0, 3000, 8, kind)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ward(points, weights, 2900))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert len({b for _, b in found[0]}) == 2900
    costs = replayed(points, weights, found[0])
    assert (np.diff(costs) >= -1e-9 * costs[1:]).all()


def replayed(points: np.ndarray, weights: np.ndarray, merges: list[tuple[int, int]]) -> np.ndarray:
    """The costs of merges, one after the other; each at least that of the pair's members, and the least of all at some steps."""
    points, weights, alive, costs = points.copy(), weights.copy(), np.ones(len(points), bool), []
    for step, (a, b) in enumerate(merges):
        n, m = weights[a], weights[b]
        costs.append(n * m / (n + m) * ((points[a] - points[b]) ** 2).sum())
        if step % 331 == 0:
            left = np.flatnonzero(alive)
            apart = ((points[left, None] - points[left]) ** 2).sum(-1)
            every = weights[left, None] * weights[left] / (weights[left, None] + weights[left]) * apart
            np.fill_diagonal(every, np.inf)
            assert costs[-1] <= every.min() * (1 + 1e-9)
        points[a] = (n * points[a] + m * points[b]) / (n + m)
        weights[a], alive[b] = n + m, False
    return np.array(costs)


def test_the_greedy_order_is_put_back() -> None:
    done = [(1.0, 4, 5), (3.0, 0, 1), (1.0, 2, 3), (2.0, 2, 4), (2.5, 0, 2)]
    assert in_order(done) == [(2, 3), (4, 5), (2, 4), (0, 1), (0, 2)]
