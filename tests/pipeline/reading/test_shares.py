"""Shares of equal tokens against a loop over rows and levels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toc_cli.ops.quantiser import quantiser
from toc_cli.pipeline.reading.shares import agreement, total


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(tables: list[torch.Tensor], x: torch.Tensor, recorded: torch.Tensor) -> tuple[list[int], list[int]]:
    """Equal and compared tokens per level of a residual chain of one head, without near ties."""
    equal, compared = [0] * len(tables), [0] * len(tables)
    for row, tokens in zip(x.double(), recorded[:, :, 0].tolist(), strict=True):
        left = row
        for level, (table, token) in enumerate(zip(tables, tokens, strict=True)):
            if token < 0:
                break
            best = int(((left - table.double()) ** 2).sum(1).argmin())
            compared[level] += 1
            equal[level] += best == token
            left = left - table[token].double()
    return equal, compared


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 4), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_each_level_is_judged_after_the_models_own_choices(seed: int, rows: int, levels: int, wrong: float) -> None:
    tables = [draw(seed + level, 6, 3) for level in range(levels)]
    form = quantiser([table[None] for table in tables], residual=levels > 1)
    x = draw(seed + 9, rows, 3)
    drawn = torch.Generator().manual_seed(seed)
    recorded = form.tokens(x)
    noise = torch.randint(-1, 6, recorded.shape, generator=drawn)
    recorded = torch.where(torch.rand(recorded.shape, generator=drawn) < wrong, noise, recorded)
    found = agreement(form, x, recorded)
    equal, compared = slow(tables, x, recorded)
    assert found.equal[:, 0].tolist() == equal
    assert found.compared[:, 0].tolist() == compared


def test_heads_are_judged_apart() -> None:
    form = quantiser([draw(0, 3, 5, 2)])
    x = draw(1, 40, 6)
    recorded = form.tokens(x)
    recorded[:10, 0, 1] = (recorded[:10, 0, 1] + 1) % 5
    found = agreement(form, x, recorded)
    assert found.each.tolist() == [[1.0, 0.75, 1.0]]
    assert found.least == 0.75
    assert not found.proven


def test_a_near_tie_that_fell_the_other_way_does_not_count() -> None:
    form = quantiser([torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [5.0, 5.0]]])])
    x = torch.tensor([[0.0, 1.0], [5.0, 4.0]])
    found = agreement(form, x, torch.tensor([1, 2]).reshape(2, 1, 1))
    assert (found.equal.item(), found.compared.item()) == (1, 1)
    assert found.proven


def test_nothing_compared_proves_nothing() -> None:
    form = quantiser([draw(0, 1, 5, 2), draw(1, 1, 5, 2)], residual=True)
    x = draw(2, 8, 2)
    recorded = form.tokens(x)
    recorded[:, 1] = -1
    found = agreement(form, x, recorded)
    assert found.least == 1.0
    assert not found.proven


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_shares_add_up(cut: int) -> None:
    form, x = quantiser([draw(0, 2, 5, 2)]), draw(1, 20, 4)
    recorded = torch.randint(0, 5, (20, 1, 2), generator=torch.Generator().manual_seed(0))
    whole = agreement(form, x, recorded)
    parts = total([agreement(form, x[a:b], recorded[a:b]) for a, b in ((0, cut), (cut, 20)) if a < b])
    assert (parts.equal == whole.equal).all()
    assert (parts.compared == whole.compared).all()
