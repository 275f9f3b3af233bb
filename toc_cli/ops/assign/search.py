"""Which backend searches, and the search as one operator that torch.compile and torch.export see as a whole."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from toc_cli.errors import UsageError, missing_extra
from toc_cli.ops.assign import blas, naive, native
from toc_cli.ops.assign.found import Found
from toc_cli.ops.assign.inputs import check_finite, fit

METRICS = ("euclidean", "cosine", "dot")
BACKENDS = ("auto", "naive", "torch", "native", "triton")
NEAR = 1e-6  # a near tie: the second best distance is within this of the best, relative

Search = Callable[[Tensor, Tensor, str, Tensor | None, float], Found]


def choose(device: torch.device) -> str:
    """The backend of `auto`: the compiled kernel on the CPU, Triton on a GPU; torch where that is not to be had."""
    if device.type == "cpu":
        _tell_search()
        if native.instruction_set():
            return "native"
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        return "triton"
    return "torch"


@lru_cache(maxsize=1)
def _tell_search() -> None:
    """What searches, once a process, for `-v`."""
    runs = f"nearest codes by the compiled search ({native.instruction_set()}), {torch.get_num_threads()} threads"
    logging.getLogger("toc").info(native.missing() or runs)


def backend_search(name: str) -> Search:
    """The search of a backend, with an error that says how to get it."""
    if name == "native":
        if not native.instruction_set():
            raise UsageError("The compiled search is asked for, and absent.", native.missing() or "")
        return native.search
    if name == "triton":
        if not importlib.util.find_spec("triton"):
            raise missing_extra("triton", "triton")
        from toc_cli.ops.assign import gpu

        return gpu.search
    return {"naive": naive.search, "torch": blas.search}[name]


@torch.no_grad()
def find(x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, backend: str, reach: float) -> Found:
    """Checks the arguments and searches; raises InputError or UsageError."""
    if metric not in METRICS:
        raise UsageError(f"Metric {metric!r} is not one of {', '.join(METRICS)}.")
    if backend not in BACKENDS:
        raise UsageError(f"Backend {backend!r} is not one of {', '.join(BACKENDS)}.")
    if backend == "native" and x.device.type != "cpu":
        raise UsageError(f"The compiled search runs on the CPU, not on {x.device}.", "Use backend='auto'.")
    kept = fit(x, codes, kept)
    backend = choose(x.device) if backend == "auto" else backend
    if backend != "native":  # which looks while it reads the codes
        check_finite("codebook", codes, kept if kept is not None and codes.shape[1] == x.shape[1] else None)
    return backend_search(backend)(x, codes, metric, kept, reach)


@torch.no_grad()
def distances(
    x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, found: Found, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index (N,), distance (N,), second distance (N,), near tie (N,) of a search; the last three are empty where `reach` is 0."""
    index, best, second = found.index, found.best, found.second
    if not reach:
        best, second = best.new_empty(0), best.new_empty(0)
    near = (second - best) <= NEAR * best.abs()
    if metric == "cosine" and reach:
        norms = naive.row_norms(x if kept is None else x.index_select(1, kept.to(x.device)))
        norms = torch.where(norms == 0, 1.0, norms)  # a zero row has similarity 0 to every code already
        best, second = best / norms, second / norms
    return index, best, second, near


@torch.library.custom_op(
    "toc::nearest",
    mutates_args=(),
    schema="(Tensor x, Tensor codes, str metric, Tensor? kept, str backend, float reach) -> (Tensor, Tensor, Tensor, Tensor)",
)
def nearest_op(
    x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, backend: str, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index (N,), distance (N,), second distance (N,), near tie (N,); the last three are empty where `reach` is 0."""
    return distances(x, codes, metric, kept, find(x, codes, metric, kept, backend, reach), reach)


@nearest_op.register_fake
def _(
    x: Tensor, codes: Tensor, metric: str, kept: Tensor | None, backend: str, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    known = rows if reach else 0
    best, second = (x.new_empty(known, dtype=torch.float64) for _ in range(2))
    return x.new_empty(rows, dtype=torch.int64), best, second, x.new_empty(known, dtype=torch.bool)
