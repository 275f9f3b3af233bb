"""The compiled search for the CPU (_native.c), loaded with ctypes, which lets go of the interpreter lock while it runs.

TOC_NATIVE=0 in the environment leaves it aside; TOC_NATIVE=portable, avx2 or avx512 picks the instruction set.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Tensor

from toc_cli.ops.assign.certificate import CHUNK, frame
from toc_cli.ops.assign.found import Found
from toc_cli.ops.assign.inputs import check_finite

ISAS = ("portable", "avx2", "avx512")
METRIC_NUMBER = {"euclidean": 0, "cosine": 1, "dot": 2}
PANEL_ELEMENTS = 1 << 23  # codes packed at a time: 32 MiB
ROW_STATE = 1 << 20  # rows searched at a time: their lists take 24 MiB
CONVERTED = 1 << 23  # elements of half-precision rows held in float32 at a time
MANY_OPEN = 1 / 64  # share of re-checked rows from which equal codes are looked for
INLINE_WORK = 1 << 21  # multiply-adds below which threads cost more than they save


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("is_double", ctypes.c_int32),
    )


class _Search(ctypes.Structure):
    _fields_ = (
        ("x", _Matrix),
        ("codes", _Matrix),
        ("dims", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("mu", "code_norms", "twin", "panel", "row_shift")),
        *(
            (name, ctypes.c_double)
            for name in ("scale", "row_gain", "slope", "offset", "curve", "reach", "per_distance")
        ),
        *((name, ctypes.c_void_p) for name in ("index", "best", "second", "open_rows", "open_floor")),
        *((name, ctypes.c_int64) for name in ("open_count", "overflow_count", "next_row")),
        *((name, ctypes.c_int32) for name in ("metric", "isa", "failed")),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled library; None where it was not built."""
    spec = importlib.util.find_spec(f"{__package__}._native")
    if spec is None or spec.origin is None:
        return None
    return declare(ctypes.CDLL(spec.origin))


def declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The argument types of its functions."""
    loaded.toc_panel_floats.restype = ctypes.c_int64
    loaded.toc_panel_floats.argtypes = (ctypes.c_int64, ctypes.c_int64)
    for name in ("toc_pack", "toc_scan", "toc_recheck"):
        getattr(loaded, name).argtypes = (ctypes.POINTER(_Search),)
        getattr(loaded, name).restype = None
    return loaded


def instruction_set() -> str | None:
    """What the compiled search will run on: portable, avx2 or avx512; None where it is absent or switched off."""
    wish = os.environ.get("TOC_NATIVE", "")
    loaded = None if wish == "0" else library()
    if loaded is None:
        return None
    return ISAS[min(loaded.toc_isa(), ISAS.index(wish) if wish in ISAS else len(ISAS))]


def search(x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, reach: float) -> Found:
    """The two nearest codes; see Found. x and codes are read where they lie: no copy, half precision converted in blocks."""
    columns = kept if kept is not None and codes.shape[1] == x.shape[1] else None
    parts = codes.split(_slice(codes, columns))
    return search_packed(x, (_Codebook(part, metric, columns) for part in parts), len(parts), kept, reach)


def pack(codes: Tensor, metric: str, columns: Tensor | None = None) -> list[_Codebook]:
    """The codes (K, D), or these columns of them, packed once for many blocks of rows."""
    return [_Codebook(part, metric, columns) for part in codes.split(_slice(codes, columns))]


def _slice(codes: Tensor, columns: Tensor | None) -> int:
    """Codes packed at a time."""
    return max(1, PANEL_ELEMENTS // (codes.shape[1] if columns is None else len(columns)))


def search_packed(x: Tensor, books: Iterable[_Codebook], count: int, kept: Tensor | None, reach: float) -> Found:
    """`search` in `count` slices of packed codes."""
    index = torch.zeros(len(x), dtype=torch.int64)
    distances = len(x) if reach or count > 1 else 0
    best, second = (torch.full((distances,), torch.inf, dtype=torch.float64) for _ in range(2))
    step = ROW_STATE if _direct(x) else max(1, min(ROW_STATE, CONVERTED // x.shape[1]))
    checked, seconds, first = 0, 0.0, 0
    for book in books:
        for start in range(0, len(x), step):
            found = book.search(x[start : start + step], kept, reach, bool(distances), start)
            checked, seconds = checked + found.checked, seconds + found.recheck_seconds
            at = slice(start, start + step)
            if not first:
                index[at], best[at], second[at] = found.index, found.best, found.second
            else:
                _merge(index[at], best[at], second[at], found.index + first, found.best, found.second)
        first += len(book.codes)
    return Found(index, best, second, checked, seconds)


def _merge(
    index: Tensor, best: Tensor, second: Tensor, new_index: Tensor, new_best: Tensor, new_second: Tensor
) -> None:
    """The two nearest of an earlier slice of the codebook and a later one, in place; on a tie the earlier stays."""
    torch.minimum(torch.minimum(second, new_second), torch.maximum(best, new_best), out=second)
    index.copy_(torch.where(new_best < best, new_index, index))
    torch.minimum(best, new_best, out=best)


def _direct(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


def _matrix(x: Tensor, columns: Tensor | None) -> tuple[_Matrix, Tensor | None]:
    """How C reads a matrix where it lies, and the column offsets that must outlive the call."""
    if columns is not None:
        offsets: Tensor | None = (columns * x.stride(1)).contiguous()
    else:
        offsets = None if x.stride(1) == 1 or x.shape[1] == 1 else torch.arange(x.shape[1]) * x.stride(1)
    pointer = None if offsets is None else offsets.data_ptr()
    return _Matrix(x.data_ptr(), pointer, len(x), x.stride(0), x.dtype == torch.float64), offsets


class _Codebook:
    """A codebook (K, D) packed for the compiled search."""

    def __init__(self, codes: Tensor, metric: str, columns: Tensor | None) -> None:
        loaded = library()
        if loaded is None:
            raise RuntimeError("The compiled search was not built.")
        self.library = loaded
        codes = codes if _direct(codes) else codes.float()
        self.around = frame(codes, metric, columns)
        k, d = len(codes), len(self.around.mu)
        self.norms = torch.empty(k, dtype=torch.float64)
        self.panel = torch.empty(self.library.toc_panel_floats(k, d), dtype=torch.float32)
        self.row_shift = self.around.mu if metric == "euclidean" else torch.zeros(d)
        matrix, offsets = _matrix(codes, columns)
        self.codes, self.columns, self.offsets = codes, columns, offsets
        self.task = _Search(
            codes=matrix, dims=d, mu=self.around.mu.data_ptr(), code_norms=self.norms.data_ptr(), panel=self.panel.data_ptr(),
            row_shift=self.row_shift.data_ptr(), scale=self.around.scale,
            row_gain=self.around.scale if metric == "euclidean" else 1.0, slope=self.around.slope, offset=self.around.offset,
            curve=self.around.curve, per_distance=self.around.per_distance, metric=METRIC_NUMBER[metric],
            isa=ISAS.index(instruction_set() or "portable"),
        )  # fmt: skip
        self.library.toc_pack(self.task)

    def search(self, x: Tensor, kept: Tensor | None, reach: float, distances: bool, row: int) -> Found:
        """`search` within this codebook; `row` is the number of the first row, for errors."""
        if not _direct(x):
            x, kept = (x if kept is None else x.index_select(1, kept)).float(), None
        n, task = len(x), self.task
        task.x, self.row_offsets = _matrix(x, kept)
        index, open_rows = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.int64)
        floor = torch.empty(n, dtype=torch.float32)
        best, second = (torch.full((n if distances else 0,), torch.inf, dtype=torch.float64) for _ in range(2))
        task.index, task.open_rows, task.open_floor = index.data_ptr(), open_rows.data_ptr(), floor.data_ptr()
        task.best, task.second = (best.data_ptr(), second.data_ptr()) if distances else (None, None)
        task.reach, task.open_count, task.overflow_count = reach, 0, 0
        self._run(self.library.toc_scan, n)
        if task.overflow_count:
            check_finite("features", x, kept, row)
        began = time.perf_counter()
        if task.open_count:
            twin, has_twin = self._twins(task.open_count / n)
            task.twin = None if twin is None else twin.data_ptr()
            self._run(self.library.toc_recheck, task.open_count)
            if has_twin is not None and distances:
                second = torch.where(has_twin[index], best, second)
        return Found(index, best, second, task.open_count, time.perf_counter() - began)

    def _twins(self, share: float) -> tuple[Tensor | None, Tensor | None]:
        """`twins` of the codes, once so many rows are open that leaving equal codes out may pay."""
        return twins(self.codes, self.columns) if share > MANY_OPEN else (None, None)

    def _run(self, work: Callable[[_Search], None], rows: int) -> None:
        """The work on as many threads as torch uses; they share the rows through the task's counter."""
        self.task.next_row = self.task.failed = 0
        size = rows * len(self.codes) * self.task.dims
        count = min(torch.get_num_threads(), 1 + size // INLINE_WORK)
        threads = [threading.Thread(target=work, args=(self.task,)) for _ in range(count - 1)]
        try:
            for thread in threads:
                thread.start()
            work(self.task)
        finally:  # an interrupt must not free what the others still write to
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self.task.failed:
            raise MemoryError("The nearest-code search got no memory for its tiles.")


def twins(codes: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which codes (K,) equal an earlier one, uint8, and which have a later equal, bool. May miss some: it only saves work."""
    k = len(codes)
    twin, has_twin = torch.zeros(k, dtype=torch.uint8), torch.zeros(k, dtype=torch.bool)
    kind = torch.int32 if codes.dtype == torch.float32 else torch.int64
    width = codes.shape[1] if columns is None else len(columns)
    weights = torch.arange(1, 2 * width, 2) * 0x1E3779B97F4A7C15
    parts = []
    for block in codes.split(max(1, CHUNK // width)):
        block = block if columns is None else block.index_select(1, columns)
        parts.append((block.contiguous().view(kind) * weights).sum(1))
    ordered, order = torch.cat(parts).sort(stable=True)
    place = (ordered[1:] == ordered[:-1]).nonzero()[:, 0]
    for pair in place.split(max(1, CHUNK // width)):
        one, other = codes[order[pair]], codes[order[pair + 1]]
        equal = (one == other if columns is None else (one == other)[:, columns]).all(1)
        has_twin[order[pair][equal]] = True
        twin[order[pair + 1][equal]] = 1
    return twin, has_twin
