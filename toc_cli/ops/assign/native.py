"""The compiled search for the CPU (_search.c), loaded with ctypes, which lets go of the interpreter lock while it runs.

TOC_NATIVE=0 in the environment leaves it aside; TOC_NATIVE=portable, avx2, avx512 or avx512vnni picks the instruction set.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from toc_cli.errors import UsageError
from toc_cli.ops.assign.certificate import CHUNK, bounded
from toc_cli.ops.assign.found import Found, merge
from toc_cli.ops.assign.inputs import check_finite

ISAS = ("portable", "avx2", "avx512", "avx512vnni")
INSTALL = "Reinstall toc-cli from its sources with a C compiler (gcc or clang) at hand."
METRIC_NUMBER = {"euclidean": 0, "cosine": 1, "dot": 2}
PANEL_ELEMENTS = 1 << 23  # codes packed at a time: 32 MiB
ROW_STATE = 1 << 20  # rows searched at a time: their lists take 12 MiB
CONVERTED = 1 << 23  # elements of half-precision rows held in float32 at a time
MANY_OPEN = 1 / 64  # share of re-checked rows from which equal codes are looked for
INLINE_WORK = 1 << 21  # multiply-adds below which threads cost more than they save
LONG_WORK = 1 << 32  # multiply-adds from which a search may take a tenth of a second
NOTHING_LEFT = 1 << 62  # as the number of the next row: beyond all
COARSE_REACH = 32000  # _search.c: the norm that the longest code has in the steps of the coarse pass
COARSE_ROWS = 256  # rows from which the coarse pass saves more than making the codes ready for it costs


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
        *((name, ctypes.c_void_p) for name in ("mu", "code_norms")),
        *((name, ctypes.c_double) for name in ("radius", "longest")),
        *((name, ctypes.c_void_p) for name in ("twin", "panel", "bias", "coarse_panel", "coarse_bias")),
        *((name, ctypes.c_double) for name in ("coarse_gain", "coarse_rest")),
        ("row_shift", ctypes.c_void_p),
        *(
            (name, ctypes.c_double)
            for name in ("scale", "row_gain", "slope", "offset", "curve", "reach", "per_distance")
        ),
        *((name, ctypes.c_void_p) for name in ("index", "best", "second", "doubtful", "open_rows", "open_floor")),
        *((name, ctypes.c_int64) for name in ("doubtful_count", "open_count", "overflow_count", "next")),
        *((name, ctypes.c_int32) for name in ("metric", "isa", "failed")),
    )


@lru_cache(maxsize=1)
def loaded() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, or None and why it is not to be had."""
    room = Path(__file__).parent
    spec = importlib.util.find_spec(f"{__package__}._search")
    if spec is None or spec.origin is None:
        foreign = sorted(path.name for path in room.glob("_search.*") if path.suffix in (".so", ".pyd"))
        if foreign:
            return None, f"{foreign[0]} is of another system or Python"
        return None, "it was not built when toc-cli was installed: no C compiler was found, or it failed"
    try:
        return declare(ctypes.CDLL(spec.origin)), ""
    except (OSError, AttributeError) as error:
        return None, f"{Path(spec.origin).name} does not load here ({str(error).removeprefix(spec.origin + ': ')})"


def library() -> ctypes.CDLL | None:
    """The compiled library; None where it is not to be had."""
    return loaded()[0]


def missing() -> str | None:
    """Why the compiled search does not run, what that costs and what helps, in one line; None where it runs."""
    if instruction_set() is not None:
        return None
    if os.environ.get("TOC_NATIVE") == "0":
        why, helps = "TOC_NATIVE=0 is set", "Unset it."
    else:
        why, helps = loaded()[1], INSTALL
    return f"The compiled search does not run: {why}. Torch's operations serve, as exact, in five times the time or more. {helps}"


def declare(found: ctypes.CDLL) -> ctypes.CDLL:
    """The argument types of its functions."""
    for name in ("toc_panel_words", "toc_padded_codes"):
        getattr(found, name).restype = ctypes.c_int64
    found.toc_panel_words.argtypes = (ctypes.c_int64, ctypes.c_int64)
    found.toc_padded_codes.argtypes = (ctypes.c_int64,)
    for name in ("toc_frame", "toc_pack_fine", "toc_pack_coarse", "toc_scan_fine", "toc_scan_coarse", "toc_recheck"):
        getattr(found, name).argtypes = (ctypes.POINTER(_Search),)
        getattr(found, name).restype = None
    return found


def instruction_set() -> str | None:
    """What the compiled search will run on, one of ISAS; None where it is absent or switched off.

    Raises UsageError where TOC_NATIVE is none of its values.
    """
    wish = os.environ.get("TOC_NATIVE", "")
    if wish not in ("", "0", *ISAS):
        raise UsageError(f"TOC_NATIVE={wish} is no instruction set.", f"Set one of {', '.join(ISAS)}, or 0 for none.")
    built = None if wish == "0" else library()
    if built is None:
        return None
    return ISAS[min(built.toc_isa(), ISAS.index(wish) if wish else len(ISAS))]


def search(x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, reach: float) -> Found:
    """The two nearest codes; see Found. x and codes are read where they lie: no copy, half precision converted in blocks."""
    columns = kept if kept is not None and codes.shape[1] == x.shape[1] else None
    return search_packed(x, Packed(codes, metric, columns), kept, reach)


class Packed:
    """A codebook (K, D), or these columns of it, made ready in slices of at most PANEL_ELEMENTS.

    A single slice is packed once, whatever the number of searches; several are packed again for every block of rows unless
    `keep`, so that K does not drive the memory.
    """

    def __init__(self, codes: Tensor, metric: str, columns: Tensor | None = None, *, keep: bool = False) -> None:
        self.metric, self.columns = metric, columns
        self.parts = codes.split(max(1, PANEL_ELEMENTS // (codes.shape[1] if columns is None else len(columns))))
        self._books = list(self._make()) if keep or len(self.parts) == 1 else None

    def __iter__(self) -> Iterator[Codebook]:
        return iter(self._books or self._make())

    def _make(self) -> Iterator[Codebook]:
        first = 0
        for part in self.parts:
            yield Codebook(part, self.metric, self.columns, first)
            first += len(part)


def search_packed(x: Tensor, packed: Packed, kept: Tensor | None, reach: float) -> Found:
    """`search` in a codebook made ready before."""
    # empty, not zeros: filling runs on torch's threads, which then spin on the cores that the search wants
    index = torch.empty(len(x), dtype=torch.int64)
    best, second = (torch.empty(len(x) if reach else 0, dtype=torch.float64) for _ in range(2))
    step = ROW_STATE if _direct(x) else max(1, min(ROW_STATE, CONVERTED // x.shape[1]))
    doubtful, checked, seconds = 0, 0, 0.0
    for start in range(0, len(x), step):
        rows, at = x[start : start + step], slice(start, start + step)
        out = (index[at], best[at], second[at])
        if len(packed.parts) > 1 and not reach:  # slices are merged by distance
            out = (out[0], torch.empty(len(rows), dtype=torch.float64), torch.empty(len(rows), dtype=torch.float64))
        for book in packed:
            later = book.first > 0
            target = (torch.empty_like(out[0]), torch.empty_like(out[1]), torch.empty_like(out[2])) if later else out
            found = book.search(rows, kept, reach, target, start)
            doubtful, checked = doubtful + found.doubtful, checked + found.checked
            seconds += found.recheck_seconds
            if later:
                merge(*out, found.index + book.first, found.best, found.second)
    return Found(index, best, second, checked, seconds, doubtful)


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


class Codebook:
    """Codes (K, D), the first of them number `first` of their codebook, made ready for the compiled search.

    They are framed at once, and packed for a pass when it is first run.
    """

    def __init__(self, codes: Tensor, metric: str, columns: Tensor | None, first: int) -> None:
        built = library()
        if built is None:
            raise RuntimeError("The compiled search was not built.")
        self.library = built
        codes = codes if _direct(codes) else codes.float()
        matrix, offsets = _matrix(codes, columns)
        self.first, self.codes, self.columns, self.offsets = first, codes, columns, offsets
        k, d = len(codes), codes.shape[1] if columns is None else len(columns)
        self.mu = torch.empty(d)
        self.norms = torch.empty(k if metric == "cosine" else 0, dtype=torch.float64)
        isa = ISAS.index(instruction_set() or "portable")
        self.task = _Search(
            codes=matrix, dims=d, mu=self.mu.data_ptr(), code_norms=self.norms.data_ptr(), metric=METRIC_NUMBER[metric], isa=isa
        )  # fmt: skip
        self._run(self.library.toc_frame, self.task, 0)
        radius, longest = self.task.radius, self.task.longest
        if not math.isfinite(radius + longest):
            check_finite("codebook", codes, columns, first)
        around = bounded(self.mu, radius, longest, metric)
        self.row_shift = self.mu if metric == "euclidean" else torch.zeros(d)
        self.task.row_shift = self.row_shift.data_ptr()
        self.task.row_gain = around.scale if metric == "euclidean" else 1.0
        self.task.per_distance = around.per_distance
        for name in ("scale", "slope", "offset", "curve"):
            setattr(self.task, name, getattr(around, name))
        self.has_coarse = bool(self.library.toc_has_coarse(isa)) and math.isfinite(radius)
        self.panel = self.bias = self.coarse_panel = self.coarse_bias = torch.empty(0)
        self._packing = threading.Lock()

    def search(
        self, x: Tensor, kept: Tensor | None, reach: float, out: tuple[Tensor, Tensor, Tensor], row: int
    ) -> Found:
        """`search` within this codebook, into `out`: index, best, second. `row` is the number of the first row, for errors.

        Any number of threads may search at once: each has its own `_Search`, and shares only what packing has written.
        """
        if not _direct(x):
            x, kept = (x if kept is None else x.index_select(1, kept)).float(), None
        n, (index, best, second) = len(x), out
        coarse = self.has_coarse and reach != math.inf and (n >= COARSE_ROWS or len(self.coarse_panel) > 0)
        if coarse:
            self._pack_coarse()
        task = _Search.from_buffer_copy(self.task)
        task.x, _offsets = _matrix(x, kept)  # C reads the offsets until the search ends
        lists = [torch.empty(n, dtype=kind) for kind in (torch.int32, torch.int32, torch.float32)]
        task.index, task.open_rows, task.open_floor = (part.data_ptr() for part in (index, *lists[1:]))
        task.best, task.second = (best.data_ptr(), second.data_ptr()) if len(best) else (None, None)
        task.reach, task.doubtful_count, task.open_count, task.overflow_count = reach, 0, 0, 0
        task.doubtful = lists[0].data_ptr() if coarse else None
        if coarse:
            self._run(self.library.toc_scan_coarse, task, n)
        fine = task.doubtful_count if coarse else n
        if fine:
            self._pack_fine()
            task.panel, task.bias = self.panel.data_ptr(), self.bias.data_ptr()
            self._run(self.library.toc_scan_fine, task, fine)
        if task.overflow_count:
            check_finite("features", x, kept, row)
        began = time.perf_counter()
        if task.open_count:
            twin, has_twin = self._twins(task.open_count / n)
            task.twin = None if twin is None else twin.data_ptr()
            self._run(self.library.toc_recheck, task, task.open_count)
            if has_twin is not None and len(second):
                second.copy_(torch.where(has_twin[index], best, second))
        return Found(index, best, second, task.open_count, time.perf_counter() - began, fine if coarse else 0)

    def _pack_fine(self) -> None:
        with self._packing:
            if len(self.panel):
                return
            k, task = len(self.codes), self.task
            panel = torch.empty(self.library.toc_panel_words(k, task.dims), dtype=torch.float32)
            bias = torch.empty(self.library.toc_padded_codes(k), dtype=torch.float32)
            task.panel, task.bias = panel.data_ptr(), bias.data_ptr()
            self._run(self.library.toc_pack_fine, task, 1)
            self.panel, self.bias = panel, bias

    def _pack_coarse(self) -> None:
        with self._packing:
            if len(self.coarse_panel):
                return
            k, task = len(self.codes), self.task
            panel = torch.empty(self.library.toc_panel_words(k, (task.dims + 1) // 2), dtype=torch.int32)
            bias = torch.empty(self.library.toc_padded_codes(k), dtype=torch.float64)
            task.coarse_panel, task.coarse_bias = panel.data_ptr(), bias.data_ptr()
            task.coarse_rest, reach = 0.0, task.radius * task.scale
            task.coarse_gain = min(COARSE_REACH / reach, 2.0**60) if reach else 1.0
            self._run(self.library.toc_pack_coarse, task, 1)
            self.coarse_panel, self.coarse_bias = panel, bias

    def _twins(self, share: float) -> tuple[Tensor | None, Tensor | None]:
        """`twins` of the codes, once so many rows are open that leaving equal codes out may pay."""
        return twins(self.codes, self.columns) if share > MANY_OPEN else (None, None)

    def _run(self, work: Callable[[_Search], None], task: _Search, rows: int) -> None:
        """The work on as many threads as torch uses; they share it through the task's counter."""
        task.next = task.failed = 0
        size = rows * len(self.codes) * task.dims
        count = min(torch.get_num_threads(), 1 + size // INLINE_WORK)
        here = size < LONG_WORK  # a signal is heard between two lines of Python, or where one thread waits for others
        threads = [threading.Thread(target=work, args=(task,)) for _ in range(count - here)]
        try:
            for thread in threads:
                thread.start()
            if here:
                work(task)
            for thread in threads:
                thread.join()
        except BaseException:
            task.next = NOTHING_LEFT
            raise
        finally:  # an interrupt must not free what the others still write to
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if task.failed:
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
