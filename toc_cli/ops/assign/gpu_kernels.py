"""Triton kernels of the GPU search; gpu.py says how they fit together. Under TRITON_INTERPRET=1 they run on CPU tensors.

N rows, K codes (padded to a multiple of BK with bias -inf), D dimensions padded with zeros to WIDTH, a multiple of BD.
Scores are maximised.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def centred(pointers, seen, shift, gain):
    """(value - shift) * gain in float32; the difference in float64 where the values are."""
    value = tl.load(pointers, mask=seen, other=0.0)
    if value.dtype == tl.float64:
        value = (value - shift.to(tl.float64)) * gain
    else:
        value = (value.to(tl.float32) - shift) * gain
    return tl.where(seen, value, 0.0).to(tl.float32)


@triton.jit
def prepare_rows(
    x_ptr, column_ptr, shift_ptr, half_ptr, scale_ptr, square_ptr, rest_ptr, n, d, stride, gain,
    WIDTH: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows as fp16, each centred and scaled by a power of two to a largest element in [512, 1024).

    Gives that scale, the scaled |row|^2 and |row - fp16 row|^2.
    """
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    live = row < n
    largest = tl.zeros((BN,), tl.float32)
    for start in range(0, WIDTH, BD):
        column = start + tl.arange(0, BD)
        at = tl.load(column_ptr + column, mask=column < d, other=0)
        shift = tl.load(shift_ptr + column, mask=column < d, other=0.0)
        seen = live[:, None] & (column < d)[None, :]
        value = centred(x_ptr + row[:, None] * stride + at[None, :], seen, shift[None, :], gain)
        largest = tl.maximum(largest, tl.max(tl.abs(value), axis=1))
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 127
    scale = ((127 + tl.minimum(tl.maximum(9 - exponent, -100), 100)) << 23).to(tl.float32, bitcast=True)
    square = tl.zeros((BN,), tl.float32)
    rest = tl.zeros((BN,), tl.float32)
    for start in range(0, WIDTH, BD):
        column = start + tl.arange(0, BD)
        at = tl.load(column_ptr + column, mask=column < d, other=0)
        shift = tl.load(shift_ptr + column, mask=column < d, other=0.0)
        seen = live[:, None] & (column < d)[None, :]
        value = centred(x_ptr + row[:, None] * stride + at[None, :], seen, shift[None, :], gain) * scale[:, None]
        half = value.to(tl.float16)
        lost = value - half.to(tl.float32)
        square += tl.sum(value * value, axis=1)
        rest += tl.sum(lost * lost, axis=1)
        tl.store(half_ptr + row[:, None] * WIDTH + column[None, :], half, mask=live[:, None])
    tl.store(scale_ptr + row, scale, mask=live)
    tl.store(square_ptr + row, square, mask=live)
    tl.store(rest_ptr + row, rest, mask=live)


@triton.jit
def tile_scores(
    rows, live, resident, half_ptr, code_ptr, bias_ptr, scale, k0,
    WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Scores (BN, BK) against the codes from k0 on; where WIDTH = BD the rows are `resident`, else they are read again in chunks."""
    code = k0 + tl.arange(0, BK)
    column = tl.arange(0, BD)
    if WIDTH == BD:
        scores = tl.dot(resident, tl.load(code_ptr + code[None, :] * WIDTH + column[:, None]))
    else:
        scores = tl.zeros((BN, BK), tl.float32)
        for start in range(0, WIDTH, BD):
            part = tl.load(half_ptr + rows[:, None] * WIDTH + start + column[None, :], mask=live[:, None], other=0.0)
            scores = tl.dot(part, tl.load(code_ptr + code[None, :] * WIDTH + start + column[:, None]), scores)
    return scores + tl.load(bias_ptr + code)[None, :] * scale[:, None]


@triton.jit
def scan_codes(
    half_ptr, code_ptr, bias_ptr, scale_ptr, index_ptr, best_ptr, second_ptr, n, k,
    WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Best code of each row, its score and the best score of all others.

    No index is carried per element: `slot` holds the best score of each column of the tiles, `first` and `second` those
    of whole tiles; the winner stands in the best tile and the best slot, any other code in another tile or another slot.
    """
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    live = row < n
    scale = tl.load(scale_ptr + row, mask=live, other=1.0)
    resident = tl.load(half_ptr + row[:, None] * WIDTH + tl.arange(0, BD)[None, :], mask=live[:, None], other=0.0)
    slot = tl.full((BN, BK), -float("inf"), tl.float32)
    first = tl.full((BN,), -float("inf"), tl.float32)
    second = tl.full((BN,), -float("inf"), tl.float32)
    tile = tl.zeros((BN,), tl.int32)
    for k0 in range(0, k, BK):
        scores = tile_scores(row, live, resident, half_ptr, code_ptr, bias_ptr, scale, k0, WIDTH, BN, BK, BD)
        slot = tl.maximum(slot, scores)
        top = tl.max(scores, axis=1)
        second = tl.maximum(second, tl.minimum(first, top))
        tile = tl.where(top > first, k0, tile)
        first = tl.maximum(first, top)
    j = tl.argmax(slot, axis=1)
    other = tl.max(tl.where(tl.arange(0, BK)[None, :] == j[:, None], -float("inf"), slot), axis=1)
    tl.store(index_ptr + row, (tile + j).to(tl.int64), mask=live)
    tl.store(best_ptr + row, first, mask=live)
    tl.store(second_ptr + row, tl.maximum(second, other), mask=live)


@triton.jit
def collect_candidates(
    open_ptr, floor_ptr, half_ptr, code_ptr, bias_ptr, scale_ptr, found_ptr, count_ptr, m, k,
    CAPACITY: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """For the m open rows: how many codes reach the floor, and the first CAPACITY of them in ascending order."""
    place = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    live = place < m
    row = tl.load(open_ptr + place, mask=live, other=0)
    floor = tl.load(floor_ptr + place, mask=live, other=float("inf"))
    scale = tl.load(scale_ptr + row, mask=live, other=1.0)
    resident = tl.load(half_ptr + row[:, None] * WIDTH + tl.arange(0, BD)[None, :], mask=live[:, None], other=0.0)
    count = tl.zeros((BN,), tl.int32)
    for k0 in range(0, k, BK):
        scores = tile_scores(row, live, resident, half_ptr, code_ptr, bias_ptr, scale, k0, WIDTH, BN, BK, BD)
        reached = (scores >= floor[:, None]).to(tl.int32)
        here = tl.sum(reached, axis=1)
        if tl.max(here, axis=0) > 0:
            at = count[:, None] + tl.cumsum(reached, axis=1) - 1
            code = (k0 + tl.arange(0, BK))[None, :] + tl.zeros((BN, BK), tl.int32)
            keep = (reached > 0) & (at < CAPACITY) & live[:, None]
            tl.store(found_ptr + place[:, None] * CAPACITY + at, code, mask=keep)
        count += here
    tl.store(count_ptr + place, count, mask=live)


@triton.jit
def exact_distance(
    x_ptr, x_column_ptr, code_ptr, code_column_ptr, norm_ptr, row_at, code, code_at, seen, d, METRIC: tl.constexpr
):
    """Distances in float64, summed dimension by dimension as naive.py does; compile without fused multiply-add."""
    total = tl.zeros(seen.shape, tl.float64)
    for i in range(0, d):
        a = tl.load(x_ptr + row_at + tl.load(x_column_ptr + i), mask=seen, other=0.0).to(tl.float64)
        b = tl.load(code_ptr + code_at + tl.load(code_column_ptr + i), mask=seen, other=0.0).to(tl.float64)
        if METRIC == 0:
            total += (a - b) * (a - b)
        else:
            total -= a * b
    if METRIC == 1:
        norm = tl.load(norm_ptr + code, mask=seen, other=1.0)
        total = tl.where(norm == 0.0, 0.0, total / tl.where(norm == 0.0, 1.0, norm))
    return tl.where(seen, total, float("inf"))


@triton.jit
def compare_candidates(
    x_ptr, x_column_ptr, x_stride, codes_ptr, code_column_ptr, code_stride, norm_ptr, open_ptr, found_ptr, count_ptr,
    index_ptr, best_ptr, second_ptr, m, d, CAPACITY: tl.constexpr, BN: tl.constexpr, METRIC: tl.constexpr,
):  # fmt: skip
    """The two nearest of each open row's listed codes."""
    place = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    live = place < m
    row = tl.load(open_ptr + place, mask=live, other=0)
    lane = tl.arange(0, CAPACITY)
    count = tl.load(count_ptr + place, mask=live, other=0)
    seen = lane[None, :] < count[:, None]
    code = tl.load(found_ptr + place[:, None] * CAPACITY + lane[None, :], mask=seen, other=0)
    distance = exact_distance(
        x_ptr, x_column_ptr, codes_ptr, code_column_ptr, norm_ptr, row[:, None] * x_stride, code,
        code.to(tl.int64) * code_stride, seen, d, METRIC,
    )  # fmt: skip
    best = tl.min(distance, axis=1)
    index = tl.min(tl.where(seen & (distance == best[:, None]), code, 2147483647), axis=1)
    second = tl.min(tl.where(code == index[:, None], float("inf"), distance), axis=1)
    tl.store(index_ptr + row, index.to(tl.int64), mask=live)
    tl.store(best_ptr + row, best, mask=live)
    tl.store(second_ptr + row, second, mask=live)


@triton.jit
def compare_all(
    x_ptr, x_column_ptr, x_stride, codes_ptr, code_column_ptr, code_stride, norm_ptr, open_ptr,
    index_ptr, best_ptr, second_ptr, k, d, BK: tl.constexpr, METRIC: tl.constexpr,
):  # fmt: skip
    """The two nearest of all K codes, one row per program: for rows with more candidates than a list holds."""
    row = tl.load(open_ptr + tl.program_id(0))
    best = tl.full((BK,), float("inf"), tl.float64)
    second = tl.full((BK,), float("inf"), tl.float64)
    index = tl.full((BK,), 2147483647, tl.int32)
    for k0 in range(0, k, BK):
        code = k0 + tl.arange(0, BK)
        distance = exact_distance(
            x_ptr, x_column_ptr, codes_ptr, code_column_ptr, norm_ptr, row * x_stride + tl.zeros((BK,), tl.int64), code,
            code.to(tl.int64) * code_stride, code < k, d, METRIC,
        )  # fmt: skip
        second = tl.minimum(second, tl.maximum(best, distance))
        index = tl.where((distance < best) | (index == 2147483647), code, index)
        best = tl.minimum(best, distance)
    least = tl.min(best, axis=0)
    winner = tl.min(tl.where(best == least, index, 2147483647), axis=0)
    runner_up = tl.min(tl.where(index == winner, second, best), axis=0)
    tl.store(index_ptr + row, winner.to(tl.int64))
    tl.store(best_ptr + row, least)
    tl.store(second_ptr + row, runner_up)
