"""Which recorded tokens are whose."""

from __future__ import annotations

import pytest
import torch

from toc_cli.pipeline.reading.columns import places

T = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize(
    ("trailing", "shapes", "ways"),
    [
        ((), [(1, 1)], 1),
        ((3,), [(3, 1)], 1),
        ((3,), [(1, 3)], 1),
        ((3,), [(2, 1)], 0),
        ((), [(3, 1)], 0),
        ((2, 3), [(2, 3)], 1),
        ((3, 2), [(2, 3)], 1),
        ((6,), [(2, 3)], 2),
        ((4,), [(1, 1), (3, 1)], 2),
        ((3,), [(3, 1), (3, 1)], 2),
        ((1, 3), [(3, 1)], 1),
        ((4, 3), [(6, 2)], 0),
    ],
)
def test_the_number_of_ways(trailing: tuple[int, ...], shapes: list[tuple[int, int]], ways: int) -> None:
    assert len(places(trailing, shapes)) == ways


def test_codebooks_side_by_side_take_their_columns_in_either_order() -> None:
    one, other = places((4,), [(1, 1), (3, 1)])
    assert [place.of(T)[0].flatten().tolist() for place in one] == [[0], [1, 2, 3]]
    assert [(place.book, place.of(T)[0].flatten().tolist()) for place in other] == [(1, [0, 1, 2]), (0, [3])]


def test_heads_before_levels() -> None:
    (plain,), (turned,) = places((12,), [(3, 4)])
    assert plain.of(T)[0].tolist() == T[0].reshape(3, 4).tolist()
    assert turned.of(T)[0].tolist() == T[0].reshape(4, 3).T.tolist()
