"""The search on a GPU: an fp16 tensor-core pass, a bound on its error, and a float64 re-check of the rows that the bound leaves open.

Rows and codes are centred (certificate.py) and split as X = h + r, E = g + rho with h, g in fp16, scaled by powers of two.
The score h.g + bias is off by at most

    |r| max|E| + |h| max|rho| + tensor-core accumulation + rounding of the float32 additions + eta of certificate.py

with measured norms. The accumulation term takes the worst of what is known of tensor cores: blocks of 8 or 16 products
added to the sum, each addend cut at 2^-23 of the largest, without guard bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from toc_cli.ops.assign import gpu_kernels as kernels
from toc_cli.ops.assign.certificate import CHUNK, Frame, frame
from toc_cli.ops.assign.found import Found
from toc_cli.ops.assign.inputs import check_finite
from toc_cli.ops.assign.naive import row_norms

CODE_GAIN = 256.0  # on top of the frame's scale: fp16 keeps 24 bits of range below the largest code
CAPACITY = 16  # candidates that a row's list holds
HALF_ELEMENTS = 1 << 26  # fp16 row elements held at a time: 128 MiB
PAD = 128  # codes are padded to a multiple of the widest tile
METRIC_NUMBER = {"euclidean": 0, "cosine": 1, "dot": 2}


@dataclass(frozen=True)
class Tile:
    """What a program of the scan works on."""

    width: int  # dimensions after padding
    rows: int
    codes: int
    chunk: int  # dimensions per product
    warps: int
    stages: int

    def smaller(self) -> Tile:
        """For the candidate lists, whose positions take registers as well."""
        return Tile(self.width, 64, 64, self.chunk, 4, 2)

    def arguments(self) -> dict[str, int]:
        return {"WIDTH": self.width, "BN": self.rows, "BK": self.codes, "BD": self.chunk}


def tile_for(dimensions: int, shared: int) -> Tile:
    """The tile for D dimensions on a device with that many bytes of shared memory per block."""
    chunk = max(16, min(256, triton.next_power_of_2(dimensions)))
    if dimensions > 256:  # neither rows nor codes stay: both are read in chunks
        return Tile(triton.cdiv(dimensions, 64) * 64, 128, 64, 64, 8, 3)
    if chunk <= 64:
        return Tile(chunk, 128, 128, chunk, 8, 3)
    rows, stages = (128, 2) if (128 + 2 * 64) * chunk * 2 + 4096 <= shared else (64, 2)
    return Tile(chunk, rows, 64, chunk, 8 if rows == 128 else 4, stages)


def search(x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, reach: float) -> Found:
    """The two nearest codes; see Found."""
    book = _Codebook(codes, metric, kept if kept is not None and codes.shape[1] == x.shape[1] else None)
    step = max(1, HALF_ELEMENTS // book.tile.width)
    parts = [book.search(x[start : start + step], kept, reach, start) for start in range(0, len(x), step)]
    if not parts:
        empty = torch.empty(0, dtype=torch.float64, device=x.device)
        return Found(empty.long(), empty, empty.clone(), 0)
    index, best, second = (torch.cat([getattr(part, name) for part in parts]) for name in ("index", "best", "second"))
    return Found(index, best, second, sum(part.checked for part in parts))


class _Codebook:
    """A codebook (K, D) in fp16, padded, with the norms that bound the error."""

    def __init__(self, codes: Tensor, metric: str, columns: Tensor | None) -> None:
        self.codes, self.metric = codes, metric
        self.around: Frame = frame(codes, metric, columns)
        self.dimensions = len(self.around.mu)
        self.columns = _offsets(codes, columns)
        self.tile = tile_for(self.dimensions, _shared_memory(codes))
        self.padded = triton.cdiv(len(codes), PAD) * PAD
        self.panel = codes.new_zeros((self.padded, self.tile.width), dtype=torch.float16)
        self.bias = torch.full((self.padded,), -torch.inf, device=codes.device)
        self.norms = torch.empty(len(codes), dtype=torch.float64, device=codes.device)
        largest = {"whole": 0.0, "half": 0.0, "rest": 0.0}  # norms of E, g and rho
        for start, block in self._blocks(columns):
            centred, bias = self.around.codes(block)
            centred = centred * CODE_GAIN
            half = centred.half()
            at = slice(start, start + len(block))
            self.panel[at, : self.dimensions], self.bias[at] = half, bias * CODE_GAIN
            self.norms[at] = row_norms(block) if metric == "cosine" else 1.0
            for name, part in (("whole", centred), ("half", half), ("rest", centred - half.float())):
                largest[name] = max(largest[name], 1.001 * float(part.double().norm(dim=1).amax()))
        self.largest = largest

    def _blocks(self, columns: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        step = max(1, CHUNK // self.dimensions)
        for start in range(0, len(self.codes), step):
            block = self.codes[start : start + step]
            yield start, block if columns is None else block.index_select(1, columns)

    def eta(self, scale: Tensor, square: Tensor, rest: Tensor) -> Tensor:
        """Bound on the error of a row's scores, from its scale and the squared norms of scaled row and fp16 remainder; float64 (n,)."""
        scale, whole = scale.double(), square.double().sqrt() * 1.001
        remainder = (rest.double() + self.dimensions * 2.0**-126).sqrt() * 1.001
        half = whole + remainder
        products = (1.25 * self.dimensions + 40) * 2.0**-23 * half * self.largest["half"]
        sums = 2.0**-22 * (scale * self.largest["whole"] ** 2 / CODE_GAIN + half * self.largest["half"])
        split = remainder * self.largest["whole"] + half * self.largest["rest"]
        return 1.01 * (split + products + sums) + CODE_GAIN * scale * self.around.eta(whole / scale)

    def search(self, x: Tensor, kept: Tensor | None, reach: float, first: int) -> Found:
        """`search` of the rows x (n, D); `first` is the number of row 0, for errors."""
        n, tile, device = len(x), self.tile, x.device
        columns = _offsets(x, kept)
        half = torch.empty((n, tile.width), dtype=torch.float16, device=device)
        scale, square, rest, top, runner_up = torch.empty((5, n), dtype=torch.float32, device=device).unbind()
        euclidean = self.metric == "euclidean"
        shift = self.around.mu if euclidean else torch.zeros_like(self.around.mu)
        kernels.prepare_rows[(triton.cdiv(n, 16),)](
            x, columns, shift, half, scale, square, rest, n, self.dimensions, x.stride(0),
            self.around.scale if euclidean else 1.0, WIDTH=tile.width, BN=16, BD=tile.chunk,
        )  # fmt: skip
        if not bool(torch.isfinite(square).all()):
            check_finite("features", x, kept, first)
        index = torch.empty(n, dtype=torch.int64, device=device)
        kernels.scan_codes[(triton.cdiv(n, tile.rows),)](
            half, self.panel, self.bias, scale, index, top, runner_up, n, self.padded, **tile.arguments(),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        index.clamp_(max=len(self.codes) - 1)
        exact = _Exact(self, x, columns, index)
        if reach:
            every = torch.arange(n, device=device)
            exact.compare(every, index[:, None].int(), torch.ones_like(every, dtype=torch.int32))
        floor, open_rows = self._open(scale, square, rest, top, runner_up, exact.best, reach)
        if len(open_rows):
            floor = floor[open_rows]
            found = torch.empty((len(open_rows), CAPACITY), dtype=torch.int32, device=device)
            count = torch.empty(len(open_rows), dtype=torch.int32, device=device)
            small = tile.smaller()
            kernels.collect_candidates[(triton.cdiv(len(open_rows), small.rows),)](
                open_rows, floor, half, self.panel, self.bias, scale, found, count, len(open_rows), self.padded,
                CAPACITY=CAPACITY, **small.arguments(), num_warps=small.warps, num_stages=small.stages,
            )  # fmt: skip
            full = (count > CAPACITY) | (count < 1) | ~torch.isfinite(floor)
            exact.compare(open_rows[~full], found[~full], count[~full])
            exact.compare_all(open_rows[full])
        return Found(index, exact.best, exact.second, len(open_rows))

    def _open(
        self, scale: Tensor, square: Tensor, rest: Tensor, top: Tensor, second: Tensor, distance: Tensor, reach: float
    ) -> tuple[Tensor, Tensor]:
        """The score (n,) that candidates reach, and the numbers of the rows that have to be re-checked."""
        eta = self.eta(scale, square, rest)
        margin = 2 * (1 + reach) * eta if reach != torch.inf else 2 * eta
        if reach == torch.inf:
            floor = second.double() - margin
            settled = torch.zeros_like(floor, dtype=torch.bool)
        else:
            if reach:
                unit = self.around.per_distance * CODE_GAIN * scale.double()
                margin = margin + reach * distance.abs() * unit
            floor = top.double() - margin
            settled = top.double() - second.double() > margin
        lower = torch.nextafter(floor.float(), torch.full_like(top, -torch.inf))
        return lower, (~settled).nonzero()[:, 0]


class _Exact:
    """The float64 comparisons for some rows of x, written to index, best and second (n,)."""

    def __init__(self, book: _Codebook, x: Tensor, columns: Tensor, index: Tensor) -> None:
        self.book, self.x, self.columns, self.index = book, x, columns, index
        self.best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.second = self.best.clone()

    def _matrices(self) -> tuple[Tensor | int, ...]:
        book = self.book
        return (self.x, self.columns, self.x.stride(0), book.codes, book.columns, book.codes.stride(0), book.norms)

    def compare(self, rows: Tensor, found: Tensor, count: Tensor) -> None:
        """Compares the first count (m,) of the listed codes (m, CAPACITY)."""
        if len(rows):
            kernels.compare_candidates[(triton.cdiv(len(rows), 16),)](
                *self._matrices(), rows, found.contiguous(), count, self.index, self.best, self.second, len(rows),
                self.book.dimensions, CAPACITY=found.shape[1], BN=16, METRIC=METRIC_NUMBER[self.book.metric],
                enable_fp_fusion=False,
            )  # fmt: skip

    def compare_all(self, rows: Tensor) -> None:
        """Compares all codes."""
        if len(rows):
            kernels.compare_all[(len(rows),)](
                *self._matrices(), rows, self.index, self.best, self.second, len(self.book.codes),
                self.book.dimensions, BK=256, METRIC=METRIC_NUMBER[self.book.metric], enable_fp_fusion=False,
            )  # fmt: skip


def _offsets(x: Tensor, columns: Tensor | None) -> Tensor:
    """Offset (D,) of each used column of a matrix, in elements."""
    columns = torch.arange(x.shape[1], device=x.device) if columns is None else columns
    return columns * x.stride(1)


def _shared_memory(x: Tensor) -> int:
    """Bytes of shared memory that one block may take; what an A100 has where there is no GPU (the interpreter)."""
    if x.device.type != "cuda":
        return 166912
    properties = torch.cuda.get_device_properties(x.device)
    return int(getattr(properties, "shared_memory_per_block_optin", 101376))  # torch's stubs lack it
