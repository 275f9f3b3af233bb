"""Rows of tokens that follow a cut of codes, against a plain loop over the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toc_cli.ops.vocabulary import Span, cut_rows, new_rows


def slow(table: np.ndarray, spans: list[Span]) -> tuple[np.ndarray, list[int]]:
    """Row by row: a code's row goes to its new id, in a list that holds what is there so far with its weight."""
    rows, places, at = [], [], 0
    for span in [*spans, Span(len(table), torch.zeros(0, dtype=torch.int64), np.zeros(0))]:
        for row in range(at, span.start):
            places.append(len(rows))
            rows.append(table[row])
        first, met = len(rows), {}
        for old, new in enumerate(span.new.tolist()):
            places.append(first + new if new >= 0 else -1)
            if new >= 0:
                met.setdefault(new, []).append((table[span.start + old], span.usage[old]))
        for new in range(len(met)):
            vectors, usage = zip(*met[new], strict=True)
            weights = usage if sum(usage) else [1] * len(usage)
            whole = sum(w * v for w, v in zip(weights, vectors, strict=True)) / sum(weights)
            rows.append(vectors[0] if len(vectors) == 1 else whole)
        at = span.end
    return np.array(rows), places


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.booleans())
def test_rows_follow_their_codes(seed: int, count: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    spans, at = [], int(rng.integers(0, 4))
    for _ in range(count):
        codes = int(rng.integers(1, 9))
        new = rng.integers(-1, 4, codes)
        kept = np.unique(new[new >= 0])
        if not len(kept):
            new[0] = 0
            kept = np.array([0])
        new = np.where(new >= 0, np.searchsorted(kept, new), -1)
        spans.append(Span(at, torch.from_numpy(new), rng.integers(0, 3, codes)))
        at = spans[-1].end + int(rng.integers(0, 3))
    table = rng.standard_normal((at, 1 if flat else 3))
    expected, places = slow(table, spans)
    assert new_rows(at, spans).tolist() == places
    given_table = torch.from_numpy(table[:, 0] if flat else table)
    found = cut_rows(given_table, spans)
    np.testing.assert_allclose(found.reshape(len(found), -1).numpy(), expected, atol=1e-12)
    untouched = [row for row, place in enumerate(places) if place >= 0 and places.count(place) == 1]
    assert torch.equal(found[[places[row] for row in untouched]], given_table[untouched])


def test_spans_that_overlap_are_refused() -> None:
    new = torch.arange(3)
    with pytest.raises(ValueError, match="overlap"):
        new_rows(9, [Span(0, new, np.ones(3)), Span(2, new, np.ones(3))])
    with pytest.raises(ValueError, match="leave"):
        new_rows(4, [Span(2, new, np.ones(3))])
