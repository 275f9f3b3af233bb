"""A Lloyd step against plain loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toc_cli.ops.lloyd import gathered, stepped


def slow(codes: np.ndarray, z: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The mean of the rows of each code, one code at a time."""
    after = codes.astype(np.float64).copy()
    for code in range(len(codes)):
        rows = [row.astype(np.float64) for row, token in zip(z, tokens, strict=True) if token == code]
        if rows:
            after[code] = np.mean(rows, axis=0)
    return after


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 40), codes=st.integers(1, 9), dim=st.integers(1, 5), seed=st.integers(0, 999))
def test_a_step_is_the_mean_of_what_chooses_each_code(rows: int, codes: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, z = rng.standard_normal((codes, dim)), rng.standard_normal((rows, dim)).astype(np.float32)
    tokens = rng.integers(0, codes, rows)
    found = gathered(z, tokens, codes)
    np.testing.assert_allclose(stepped(table, found), slow(table, z, tokens), rtol=1e-12, atol=1e-12)
    cut = rng.integers(0, rows + 1)
    parts = gathered(z[:cut], tokens[:cut], codes) + gathered(z[cut:], tokens[cut:], codes)
    assert np.array_equal(parts.counts, found.counts)
    np.testing.assert_allclose(parts.sums, found.sums, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_step_never_costs_distortion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, z = rng.standard_normal((6, 3)), rng.standard_normal((50, 3))

    def cost(codes: np.ndarray) -> tuple[float, np.ndarray]:
        distances = ((z[:, None] - codes) ** 2).sum(-1)
        return float(distances.min(1).sum()), distances.argmin(1)

    before, tokens = cost(table)
    after, _ = cost(stepped(table, gathered(z, tokens, 6)))
    assert after <= before + 1e-9
