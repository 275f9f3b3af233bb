"""Which codes stay, and what becomes of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toc_cli.errors import UsageError
from toc_cli.ops.codes import changed_share, cut, mapped_share, merges, parse_codes


def slow_ward(codes: np.ndarray, usage: np.ndarray) -> list[tuple[int, int]]:
    """Every pair looked at before every merge."""
    clusters = {at: (codes[at], float(usage[at])) for at in range(len(codes)) if usage[at] > 0}
    done = []
    while len(clusters) > 1:
        names = sorted(clusters)
        costs = []
        for at, a in enumerate(names):
            for b in names[at + 1 :]:
                (one, n), (two, m) = clusters[a], clusters[b]
                costs.append((n * m / (n + m) * ((one - two) ** 2).sum(), a, b))
        _, a, b = min(costs)
        (one, n), (two, m) = clusters[a], clusters.pop(b)
        clusters[a] = ((n * one + m * two) / (n + m), n + m)
        done.append((a, b))
    return done


@pytest.mark.parametrize("seed", range(6))
def test_merges_are_ward_s_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, usage = rng.normal(size=(40, 1 + seed)), rng.integers(0, 9, 40)
    expected = slow_ward(codes, usage)
    assert list(merges(torch.from_numpy(codes), usage).pairs) == expected
    assert list(merges(torch.from_numpy(codes), usage, down_to=10).pairs) == expected[: np.count_nonzero(usage) - 10]


def test_equal_codes_merge_first_and_to_the_smaller_id() -> None:
    codes = torch.tensor([[0.0, 0], [5, 5], [0, 0], [9, 9], [5, 5]])
    assert merges(codes, np.array([1, 2, 3, 4, 5]), down_to=3).pairs == ((0, 2), (1, 4))


def test_the_unused_go_first_then_the_mean_by_usage() -> None:
    codes = torch.tensor([[0.0], [1], [2], [10], [50]])
    usage = np.array([3, 1, 0, 2, 0])
    table = merges(codes, usage)
    for count, map_, ids, values in (
        (5, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 10, 50]),
        (4, [0, 1, 2, 3, -1], [0, 1, 2, 3], [0, 1, 2, 10]),
        (3, [0, 1, -1, 2, -1], [0, 1, 3], [0, 1, 10]),
        (2, [0, 0, -1, 1, -1], [0, 3], [0.25, 10]),
    ):
        found = table.to(count)
        assert [part.flatten().tolist() for part in found] == [map_, ids, values]


def test_shares_of_tokens() -> None:
    codes, usage = torch.tensor([[0.0], [1], [10], [20]]), np.array([3, 1, 2, 0])
    found = cut([[merges(codes, usage)]], [2])
    assert [level.flatten().tolist() for level in found.maps] == [[0, 0, 1, -1]]
    assert changed_share(found, [usage[None]]) == 4 / 6
    old = torch.tensor([0, 1, 2, 2]).reshape(4, 1, 1)
    assert found.translate(old).flatten().tolist() == [0, 0, 1, 1]
    assert mapped_share(found, old, torch.tensor([0, 1, 1, 1]).reshape(4, 1, 1)) == 0.75


def test_what_codes_may_be_asked_for() -> None:
    assert (parse_codes("used", 64), parse_codes("0.5", 64), parse_codes("25%", 64), parse_codes("64", 64)) == (
        None,
        32,
        16,
        64,
    )
    refused = {
        "1": "leaves one code",
        "0.01": "leaves one code",
        "65": "more than",
        "0": "keeps nothing",
        "all": "not a share",
    }
    for text, sentence in refused.items():
        with pytest.raises(UsageError, match=sentence):
            parse_codes(text, 64)
