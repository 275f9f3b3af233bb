"""`toc bench assign`: the nearest-code search against its floor and the peers that are installed, interleaved in one process.

The floor on the CPU is the bare float32 product of the same shape; on a GPU the longer of the float16 product at the
rate this GPU reaches and of reading x once.
"""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toc_cli.bench.assign_cases import CASES
from toc_cli.bench.assign_peers import installed
from toc_cli.ops.assign import assign, choose, naive, native
from toc_cli.ops.assign.search import backend_search

Shape = tuple[int, int, int]
CPU_SHAPES: tuple[Shape, ...] = (
    (65536, 1024, 256), (65536, 1024, 64), (8192, 8192, 256), (65536, 1024, 8),
    (65536, 1024, 16), (65536, 400, 256), (32768, 2048, 128), (16384, 16384, 8), (4096, 65536, 64),
)  # fmt: skip
CUDA_SHAPES: tuple[Shape, ...] = (
    (1 << 20, 1024, 256), (1 << 20, 8192, 256), (1 << 22, 400, 256),
    (1 << 20, 16384, 8), (1 << 18, 65536, 64), (1 << 20, 2048, 128),
)  # fmt: skip
VERIFY_WORK = 1 << 29  # row x code x dimension comparisons in float64 for one count of mismatches
VERIFY_LIGHT: tuple[Shape, ...] = (
    (600_000, 64, 8),
    (200_000, 128, 4),
    (100_000, 37, 3),
    (100_000, 1, 8),
    (30_000, 256, 1),
)
VERIFY_HEAVY: tuple[Shape, ...] = (
    (1024, 1024, 256),
    (512, 8192, 64),
    (256, 65536, 8),
    (128, 1024, 1024),
    (33, 65536, 64),
)


def measure(
    device: str = "auto", shapes: Sequence[Shape] | None = None, repeats: int = 5, peers: Sequence[str] | None = None
) -> dict[str, Any]:
    """Median seconds, ratios, mismatches, memory and re-check cost: one row per shape and method.

    `peers` names some of the installed; None takes all.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind = torch.device(device).type
    chosen = {name: peer for name, peer in installed(kind).items() if peers is None or name in peers}
    peak = _gpu_peaks(device) if kind == "cuda" else None
    rows: list[dict[str, Any]] = []
    for shape in shapes or (CUDA_SHAPES if kind == "cuda" else CPU_SHAPES):
        rows += _measure_shape(shape, device, repeats, chosen, peak)
    return {
        "bench": "assign",
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else platform.processor() or platform.machine(),
        "backend": choose(torch.device(device)),
        "instruction_set": native.instruction_set() if kind == "cpu" else None,
        "threads": torch.get_num_threads(),
        "gpu_peaks": peak,
        "missing": native.missing() if kind == "cpu" else None,
        "rows": rows,
    }


def _measure_shape(
    shape: Shape, device: str, repeats: int, peers: dict[str, Any], peak: dict[str, float] | None
) -> list[dict[str, Any]]:
    n, k, d = shape
    generator = torch.Generator().manual_seed(n + k + d)
    x, codes = (torch.randn(size, d, generator=generator).to(device) for size in (n, k))
    kind = x.device.type
    methods: dict[str, Callable[[], Any]] = {"toc": lambda: assign(x, codes)}
    if peak is None:
        methods["floor: bare sgemm"] = _product(x, codes)
    failed: dict[str, str] = {}
    for name, peer in peers.items():
        try:
            methods[name] = peer(x, codes)
            methods[name]()
        except Exception as error:  # a peer that does not run here is a line in the table, not the end of the bench
            methods.pop(name, None)
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
    seconds = interleaved(methods, repeats, kind)
    floor = seconds.pop("floor: bare sgemm", None) or _gpu_floor(shape, peak or {})
    truth = assign(x, codes)
    found = backend_search(choose(x.device))(x, codes, "euclidean", None, 0.0)
    rows, label = [], "x".join(map(str, shape))
    for name, taken in seconds.items():
        row: dict[str, Any] = {"shape": label, "method": name, "seconds": taken}
        row |= {"x_floor": taken / floor, "x_toc": taken / seconds["toc"]}
        if name == "toc":
            sample = max(1, min(n, VERIFY_WORK // (k * d)))
            exact = naive.search(x[:sample], codes, "euclidean", None, 0.0).index
            row |= {"mismatches": int((truth[:sample] != exact).sum()), "compared": sample}
            row |= {"doubtful_share": found.doubtful / n, "rechecked_share": found.checked / n}
            row["recheck_seconds"] = found.recheck_seconds
        else:
            row |= {"mismatches": int((methods[name]() != truth).sum()), "compared": n}
        row["extra_bytes"] = extra_memory(methods[name], kind)
        rows.append(row)
    rows.append({"shape": label, "method": "floor", "seconds": floor, "x_floor": 1.0, "x_toc": floor / seconds["toc"]})
    return rows + [{"shape": label, "method": f"{name} ({why})"} for name, why in failed.items()]


def interleaved(methods: dict[str, Callable[[], Any]], repeats: int, kind: str) -> dict[str, float]:
    """Median wall seconds of each method, one call of each per round after a warm-up.

    The pause before each lets the thread pool of the one before fall asleep.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats + 1):
        for name, method in methods.items():
            time.sleep(0.02)
            _wait(kind)
            began = time.perf_counter()
            method()
            _wait(kind)
            if repeat:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _wait(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


def _product(x: Tensor, codes: Tensor) -> Callable[[], None]:
    """x codes^T into a buffer that stays in the cache."""
    rows = max(256, (1 << 20) // len(codes))
    out = torch.empty(rows, len(codes))

    def product() -> None:
        for part in x.split(rows):
            torch.mm(part, codes.T, out=out[: len(part)])

    return product


def _gpu_peaks(device: str) -> dict[str, float]:
    """What this GPU reaches: float16 products (FLOP/s) and reading memory (byte/s)."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.float16) for _ in range(2))
    source = torch.empty(1 << 28, device=device)
    target = torch.empty_like(source)
    taken = interleaved({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, 10, "cuda")
    return {"half_flops": 2 * 8192**3 / taken["product"], "bytes": 2 * source.nbytes / taken["copy"]}


def _gpu_floor(shape: Shape, peak: dict[str, float]) -> float:
    n, k, d = shape
    return max(2 * n * k * d / peak["half_flops"], 4 * n * d / peak["bytes"])


def extra_memory(method: Callable[[], Any], kind: str) -> int | None:
    """Bytes above those held before that one call needs at its peak, its result included; None where the system does not tell."""
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        method()
        return torch.cuda.max_memory_allocated() - before
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None

    def resident(field: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field))

    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is given back, so that it counts anew
        clear.write_text("5")  # the peak starts again from what is resident now
    except (OSError, AttributeError):
        return None
    before = resident("VmRSS")
    method()
    return max(0, resident("VmHWM") - before)


def verify(device: str = "auto", rows: int = 10_000_000, seed: int = 0) -> dict[str, Any]:
    """Mismatches against the float64 reference over at least `rows` rows of plain and adversarial data."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    per_case = rows / len(CASES)
    light = sum(n for n, _, _ in VERIFY_LIGHT)
    table: list[dict[str, Any]] = []
    for number, (name, case) in enumerate(CASES.items()):
        began, seen, checked, wrong, repeat = time.perf_counter(), 0, 0, 0, 0
        generator = torch.Generator().manual_seed(seed + number)
        while seen < per_case:
            share = min(1.0, (per_case - seen) / light)
            shapes = [(1 + int(n * share), k, d) for n, k, d in VERIFY_LIGHT]
            for n, k, d in shapes if repeat else [*shapes, *VERIFY_HEAVY]:
                x, codes = (part.to(device) for part in case(n, k, d, generator))
                for metric in ("euclidean", "cosine", "dot") if (k, d) == (37, 3) else ("euclidean",):
                    exact = naive.search(x, codes, metric, None, 0.0).index
                    found = backend_search(choose(x.device))(x, codes, metric, None, 0.0)
                    wrong += int((found.index != exact).sum())
                    checked, seen = checked + found.checked, seen + len(x)
            repeat += 1
        table.append(
            {
                "case": name, "compared": seen, "mismatches": wrong, "rechecked_share": checked / seen,
                "seconds": time.perf_counter() - began,
            }
        )  # fmt: skip
    total = {key: sum(row[key] for row in table) for key in ("compared", "mismatches", "seconds")}
    return {
        "bench": "assign --verify",
        "backend": choose(torch.device(device)),
        "missing": native.missing() if torch.device(device).type == "cpu" else None,
        "rows": [*table, {"case": "all", **total}],
    }
