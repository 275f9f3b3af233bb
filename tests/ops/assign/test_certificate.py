"""The error bound: float32 scores against scores in wide precision stay within eta, and eta is not uselessly wide."""

from __future__ import annotations

import pytest
import torch

from toc_cli.bench.assign_cases import CASES
from toc_cli.ops.assign import METRICS
from toc_cli.ops.assign.certificate import frame


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", CASES)
def test_scores_stay_within_the_bound(case: str, metric: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for n, k, d in ((50, 40, 3), (50, 40, 64), (20, 30, 700)):
        x, codes = CASES[case](n, k, d, generator)
        around = frame(codes, metric)
        panel, bias = around.codes(codes)
        rows = around.rows(x)
        got = torch.addmm(bias, rows, panel.T).double()
        wide, table = x.double(), codes.double()
        if metric == "cosine":
            norms = table.norm(dim=1, keepdim=True)
            table = torch.where(norms == 0, 0.0, table / norms)
        table = (table - around.mu.double()) * around.scale
        if metric == "euclidean":
            wide = (wide - around.mu.double()) * around.scale
            exact = wide @ table.T - table.square().sum(1) / 2
        else:
            exact = wide @ table.T
        eta = around.eta(rows.double().norm(dim=1))[:, None]
        assert ((got - exact).abs() <= eta).all()


def test_offsets_do_not_widen_the_bound() -> None:
    x, codes = CASES["gaussian"](5, 64, 32, torch.Generator().manual_seed(2))
    near, far = frame(codes, "euclidean"), frame(codes + 1e4, "euclidean")
    assert far.scale == near.scale
    assert far.slope == pytest.approx(near.slope, rel=1e-3)
    assert torch.allclose(far.rows(x + 1e4), near.rows(x), atol=2e-3)
    assert near.slope < 1e-4  # relative to codes of norm one half to one


def test_bound_is_infinite_where_float32_overflows() -> None:
    around = frame(torch.ones(2, 2) * torch.tensor([[1.0], [2.0]]), "dot")
    assert around.eta(torch.tensor([1e19])).item() == torch.inf
