"""The search on plain torch operations: a float32 product in cache-sized tiles, then the certificate and the float64 re-check.

It serves where the compiled kernel was not built, and on accelerators without Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from toc_cli.ops.assign.certificate import MAX_DIMENSIONS, Frame, frame
from toc_cli.ops.assign.found import Found, merge
from toc_cli.ops.assign.inputs import check_finite
from toc_cli.ops.assign.naive import pair_distances

TILE = 1 << 20  # scores held at a time
ROWS = 1 << 22  # elements of rows compared at a time
PANEL = 1 << 23  # elements of the codebook made ready at a time
CODES = 1 << 16  # codes made ready at a time: 16 rows of scores fill a tile
BLOCK = 1 << 20  # rows between which it is made ready again, so that K does not drive the memory
GATHER = 1 << 22  # elements of (row, code) pairs compared in float64 at a time


def search(x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, reach: float) -> Found:
    """The two nearest codes; see Found."""
    check_finite("features", x, kept)
    columns = kept if kept is not None and codes.shape[1] == x.shape[1] else None
    parts = codes.split(max(1, min(CODES, PANEL // (codes.shape[1] if columns is None else len(columns)))))
    index = torch.empty(len(x), dtype=torch.int64, device=x.device)
    best, second = (torch.empty(len(x) if reach else 0, dtype=torch.float64, device=x.device) for _ in range(2))
    checked = 0
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, len(x), BLOCK):
            at = slice(start, start + BLOCK)
            found = _in_parts(x[at], parts, metric, kept, columns, reach)
            index[at] = found.index
            if reach:
                best[at], second[at] = found.best, found.second
            checked += found.checked
    return Found(index, best, second, checked)


def _in_parts(
    rows: Tensor, parts: Sequence[Tensor], metric: str, kept: Tensor | None, columns: Tensor | None, reach: float
) -> Found:
    """`_search` in a codebook that comes in slices; on a tie the earlier slice stays."""
    whole, first = None, 0
    for part in parts:
        found = _search(
            rows, part if columns is None else part.index_select(1, columns), metric, kept, reach, len(parts) > 1
        )
        if whole is None:
            whole = found
        else:
            merge(whole.index, whole.best, whole.second, found.index + first, found.best, found.second)
            whole = replace(whole, checked=whole.checked + found.checked)
        first += len(part)
    assert whole is not None
    return whole


def _search(x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, reach: float, measured: bool) -> Found:
    """`measured`: the distance of the nearest code is wanted also where `reach` is 0."""
    n, device = len(x), x.device
    index = torch.zeros(n, dtype=torch.int64, device=device)
    measured = measured or reach > 0
    best = torch.zeros(n if measured else 0, dtype=torch.float64, device=device)
    second = torch.full((n if measured else 0,), torch.inf, dtype=torch.float64, device=device)
    around = frame(codes, metric)
    exact = torch.float32 if _ieee_products() and codes.shape[1] <= MAX_DIMENSIONS else torch.float64
    panel, bias = (part.to(exact) for part in around.codes(codes))
    checked = 0
    step = max(16, min(TILE // len(codes), ROWS // codes.shape[1]))
    for start in range(0, n, step):
        rows = x[start : start + step] if kept is None else x[start : start + step].index_select(1, kept)
        centred = around.rows(rows).to(exact)
        scores = torch.addmm(bias, centred, panel.T)  # (n, K)
        top, found = scores.max(1)
        stop = start + len(rows)
        index[start:stop] = found
        if measured:
            best[start:stop] = pair_distances(rows, codes[found], metric)
        others = scores.scatter(1, found[:, None], -torch.inf).amax(1)
        threshold = _threshold(top, others, best[start:stop], around, centred, reach)
        close = (~(others < threshold)).nonzero()[:, 0]  # NaN is close
        if len(close):
            at, candidates = start + close, ~(scores[close] < threshold[close, None])
            index[at], nearest, runner_up = _recheck(rows[close], codes, candidates, metric)
            if measured:
                best[at], second[at] = nearest, runner_up
            checked += len(close)
    return Found(index, best, second, checked)


def _ieee_products() -> bool:
    """Whether float32 products are float32 here: TF32 and bfloat16 modes would break the error bound."""
    return torch.get_float32_matmul_precision() == "highest"


def _threshold(top: Tensor, others: Tensor, distance: Tensor, around: Frame, centred: Tensor, reach: float) -> Tensor:
    """The score (n,) that every code must reach which is, by the certificate, possibly nearest or wanted as second best."""
    eta = around.eta(centred.double().norm(dim=1))
    if reach == torch.inf:
        floor = others.double() - 2 * eta
    else:
        floor = top.double() - 2 * (1 + reach) * eta
        if reach:
            floor -= reach * distance.abs() * around.per_distance
    # rounded down, so that no candidate is lost to the conversion
    return torch.nextafter(floor.to(top.dtype), torch.full_like(top, -torch.inf))


def _recheck(rows: Tensor, codes: Tensor, candidates: Tensor, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """The float64 comparison of the candidate codes (m, K) of rows (m, D): index, distance, second distance (m,)."""
    row, code = candidates.nonzero(as_tuple=True)  # codes ascend within a row
    step = max(1, GATHER // codes.shape[1])
    distance = torch.cat(
        [pair_distances(rows[i], codes[k], metric) for i, k in zip(row.split(step), code.split(step), strict=True)]
    )
    smallest = _least(distance, row, len(rows), torch.inf)
    index = _least(torch.where(distance == smallest[row], code, len(codes)), row, len(rows), len(codes))
    second = _least(torch.where(code == index[row], torch.inf, distance), row, len(rows), torch.inf)
    return index, smallest, second


def _least(values: Tensor, row: Tensor, rows: int, start: float) -> Tensor:
    """Smallest value of each row (P,) -> (rows,)."""
    return torch.full((rows,), start, dtype=values.dtype, device=values.device).scatter_reduce(0, row, values, "amin")
