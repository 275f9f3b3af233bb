"""The 16-bit pass of the compiled search: it settles most rows, gives up where it cannot, and never changes an answer."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from toc_cli.bench.assign_cases import CASES
from toc_cli.errors import InputError
from toc_cli.ops.assign import METRICS, NEAR, native
from toc_cli.ops.assign.search import backend_search

pytestmark = pytest.mark.skipif(
    native.instruction_set() not in ("avx2", "avx512vnni"), reason="this machine's compiled search has no coarse pass"
)


@pytest.mark.parametrize("d", [3, 8, 64, 256])
def test_settles_most_rows(d: int) -> None:
    x, codes = CASES["gaussian"](4000, 256, d, torch.Generator().manual_seed(d))
    found = native.search(x, codes, "euclidean", None, 0.0)
    assert found.checked <= found.doubtful < 0.05 * len(x)


def test_gives_up_where_codes_differ_in_scale() -> None:
    x, codes = CASES["decades"](12_000, 64, 4, torch.Generator().manual_seed(1))
    found = native.search(x, codes, "euclidean", None, 0.0)
    assert found.doubtful > 0.5 * len(x)
    assert torch.equal(found.index, backend_search("torch")(x, codes, "euclidean", None, 0.0).index)


@pytest.mark.parametrize("case", CASES)
def test_many_rows(case: str) -> None:
    """Enough rows for several blocks, threads and the trial; odd D, K no multiple of a tile."""
    x, codes = CASES[case](9000, 101, 5, torch.Generator().manual_seed(2))
    for metric in METRICS:
        expected = backend_search("torch")(x, codes, metric, None, NEAR)
        found = native.search(x, codes, metric, None, NEAR)
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.best, expected.best)
        near = (expected.second - expected.best) <= NEAR * expected.best.abs()
        assert torch.equal((found.second - found.best) <= NEAR * found.best.abs(), near)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), k=st.integers(1, 70), d=st.integers(1, 40),
    spread=st.integers(-30, 30), shift=st.integers(-8, 8), metric=st.sampled_from(METRICS),
)  # fmt: skip
def test_any_scale_and_place(seed: int, k: int, d: int, spread: int, shift: int, metric: str) -> None:
    g = torch.Generator().manual_seed(seed)
    x, codes = torch.randn(300, d, generator=g), torch.randn(k, d, generator=g)
    x, codes = x * 2.0**spread + 2.0**shift, codes * 2.0 ** (spread - 2) + 2.0**shift
    expected = backend_search("torch")(x, codes, metric, None, 0.0).index
    assert torch.equal(native.search(x, codes, metric, None, 0.0).index, expected)


def test_rows_that_are_not_finite_do_not_spoil_their_block() -> None:
    x, codes = CASES["gaussian"](600, 40, 6, torch.Generator().manual_seed(3))
    book = native.Codebook(codes, "euclidean", None, 0)
    x[77, 2] = torch.inf
    out = (
        torch.empty(600, dtype=torch.int64),
        torch.empty(0, dtype=torch.float64),
        torch.empty(0, dtype=torch.float64),
    )
    with pytest.raises(InputError, match="Row 77 of the features"):
        book.search(x, None, 0.0, out, 0)
