"""How one budget is split: properties, and the best split of all by trying every one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toc_cli.ops.budget import by_exchange, by_gain, by_need


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 100))
def test_each_takes_what_it_needs_of_what_is_left(needs: list[int], more: int) -> None:
    budget = len(needs) + more
    taken = by_need(needs, budget)
    assert all(1 <= size <= need for size, need in zip(taken, needs, strict=True))
    assert sum(taken) == min(budget, sum(needs))
    short = [at for at, (size, need) in enumerate(zip(taken, needs, strict=True)) if size < need]
    assert not short or all(size == 1 for size in taken[short[0] + 1 :])


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(0, 20))
def test_steps_of_convex_curves_of_one_cost_are_the_best_split(seed: int, count: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(count):
        gains = np.sort(rng.uniform(0.1, 1, rng.integers(0, 6)))[::-1]
        curves.append([(at + 1, float(loss)) for at, loss in enumerate(10 - np.cumsum([0, *gains]))])
    budget = count + more
    found = by_gain(curves, budget)
    cost, loss = (sum(curve[at][part] for curve, at in zip(curves, found, strict=True)) for part in (0, 1))
    every = [[*zip(*points, strict=True)] for points in product(*curves)]
    best = min(sum(losses) for costs, losses in every if sum(costs) <= budget)
    assert cost <= budget
    assert loss == pytest.approx(best)


def test_a_step_skips_points_that_save_nothing() -> None:
    assert by_gain([[(1, 5.0), (2, 6.0), (3, 1.0)], [(1, 2.0), (2, 1.9)]], 4) == [2, 0]
    assert by_gain([[(1, 1.0), (2, 1.0)]], 9) == [0]
    with pytest.raises(ValueError, match="exceed"):
        by_gain([[(2, 1.0)], [(3, 1.0)]], 4)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(1, 6), st.booleans())
def test_exchanges_of_convex_losses_of_one_cost_end_at_the_best_split(
    seed: int, parts: int, size: int, joined: bool
) -> None:
    rng = np.random.default_rng(seed)
    most = [8] * parts
    gains = [np.sort(rng.uniform(0.1, 1, 8))[::-1] for _ in most]
    asked = []

    def loss(split: tuple[int, ...]) -> float:
        return float(sum(10 - gain[:count].sum() for gain, count in zip(gains, split, strict=True)))

    def losses(splits: Sequence[tuple[int, ...]]) -> list[float]:
        asked.extend(splits)
        return [loss(split) for split in splits]

    budget = 3 * size * parts + (2 if joined else 0)
    found = by_exchange([size] * parts, [3] * parts, most, budget, losses, 10_000)
    every = [split for split in product(range(1, 9), repeat=parts) if 3 * sum(split) <= budget]
    assert 3 * sum(found) <= budget
    assert all(1 <= count <= 8 for split in asked for count in split)
    assert loss(found) == pytest.approx(min(map(loss, every)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 60))
def test_exchanges_never_lose_and_stay_within_the_budget(seed: int, parts: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    costs, most = rng.integers(1, 9, parts).tolist(), rng.integers(4, 20, parts).tolist()
    start = [int(rng.integers(1, top + 1)) for top in most]
    budget = sum(a * b for a, b in zip(start, costs, strict=True)) + more
    known: dict[tuple[int, ...], float] = {}

    def losses(splits: Sequence[tuple[int, ...]]) -> list[float]:
        return [known.setdefault(split, float(rng.uniform())) for split in splits]

    found = by_exchange(start, costs, most, budget, losses, 50)
    assert sum(a * b for a, b in zip(found, costs, strict=True)) <= budget
    assert known[found] <= known[tuple(start)]
    assert len(known) <= 50 + 2 * parts + 4 + parts
    with pytest.raises(ValueError, match="exceed"):
        by_exchange(start, costs, most, sum(costs) - 1, losses, 50)
