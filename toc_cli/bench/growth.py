"""How cost grows with what is given: CPU seconds and peak memory of whole commands at several sizes of one axis at a time, the
exponent that fits them, and beside each what a plain library takes for the same bytes. Every run is a process of its own, on one
thread, interleaved with nothing: CPU time is what counts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from toc_cli.bench.processes import run_python, run_toc
from toc_cli.errors import UsageError

Words = list[str]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
NAMES = tuple("ash beech cedar date elm fir gum hazel iris juniper kapok larch maple nutmeg oak pine".split())  # noqa: SIM905
"""Words, so that each is a modality of its own."""
READ_AND_MULTIPLY = """
import sys, time, h5py, torch
codes, tables = int(sys.argv[2]), int(sys.argv[3])
began = time.process_time()
with h5py.File(sys.argv[1]) as file:
    for data in file.values():
        width = data.shape[1] // (tables if sys.argv[4] == "heads" else 1)
        table = torch.ones(codes, width)
        for start in range(0, len(data), 16384):
            block = torch.from_numpy(data[start : start + 16384])
            for part in block.split(width, 1) if sys.argv[4] == "heads" else [block] * tables:
                part @ table.T
print(time.process_time() - began)
"""
HEADER = """
import sys, time
from safetensors import safe_open
began = time.process_time()
with safe_open(sys.argv[1], "np") as file:
    for key in file.keys():
        file.get_slice(key).get_shape()
print(time.process_time() - began)
"""
CONTRAST = """
import sys, time, torch
rows, width, steps = map(int, sys.argv[1:])
x = torch.randn(rows, width, requires_grad=True)
began = time.process_time()
for _ in range(steps):
    scores = x @ x.detach().T
    (scores.logsumexp(1).mean() + scores.logsumexp(0).mean()).backward()
print(time.process_time() - began)
"""


@dataclass(frozen=True)
class Axis:
    """What is made larger, and the command that is measured."""

    sizes: tuple[int, ...]
    make: Callable[[Path, int], tuple[Words, Words]]
    """(folder, size) -> the words of `toc`, and those of the floor: a program of Python and its arguments."""
    note: str = ""
    """Why it may grow faster than its size."""


def measure_growth(names: Sequence[str] = (), *, shrink: int = 1) -> list[dict[str, Any]]:
    """A row per axis and size: CPU seconds of the whole command and of its floor, peak memory; the last row of an axis has the
    exponent that fits its sizes. `shrink` divides every size.

    UsageError for an axis that is not there.
    """
    for name in names:
        if name not in AXES:
            raise UsageError(f"There is no axis {name!r} of growth.", f"Use one of: {', '.join(AXES)}.")
    rows: list[dict[str, Any]] = []
    for name in names or AXES:
        axis = AXES[name]
        found: list[dict[str, Any]] = []
        for size in dict.fromkeys(max(1, size // shrink) for size in axis.sizes):
            with tempfile.TemporaryDirectory() as folder:
                words, floor = axis.make(Path(folder), size)
                used = run_toc(words, ONE_THREAD)
                plain = float(run_python(floor[0], floor[1:], ONE_THREAD).said)
            found.append(
                {"axis": name, "size": size, "cpu_seconds": used.cpu_seconds, "floor_seconds": plain, "peak_bytes": used.peak}
            )  # fmt: skip
        grown = exponent([row["size"] for row in found], [row["cpu_seconds"] for row in found])
        found[-1]["exponent"] = grown
        if grown is not None and grown > 1.1:
            found[-1]["why"] = axis.note
        rows += found
    return rows


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The p of cost = a + b size^p, a >= 0 and b >= 0, with the least squared relative error over the measured points; None where
    the last cost is less than half above the first: what grows then drowns in what does not."""
    if max(costs) < 1.5 * min(costs):
        return None
    found = min(np.linspace(0.05, 3.0, 296), key=lambda p: _misfit(np.asarray(sizes, float), np.asarray(costs), p))
    return round(float(found), 2)


def _misfit(sizes: np.ndarray, costs: np.ndarray, p: float) -> float:
    """Least squared relative error over a, b >= 0 for this p."""
    from scipy.optimize import nnls

    columns = np.stack([np.ones_like(sizes), (sizes / sizes.max()) ** p], 1) / costs[:, None]
    return float(nnls(columns, np.ones_like(costs))[1])


# -- what is made larger --------------------------------------------------------------------------------------------------


def optimize(
    folder: Path, size: int, *, axis: str, rows: int = 20_000, dim: int = 64, codes: int = 512, criterion: str = "toc"
) -> tuple[Words, Words]:
    """`toc optimize` on random features around random codes, one of the sizes being `size`; beside reading them once and one
    product of rows and codes for each table."""
    rows, dim, codes = (size if axis == name else own for name, own in (("rows", rows), ("dim", dim), ("codes", codes)))
    tables = size if axis in ("levels", "heads") else 1
    streams = size if axis == "modalities" else 1
    width = dim * tables if axis == "heads" else dim
    draw = np.random.default_rng(0)
    table = draw.standard_normal((tables, codes, dim), dtype=np.float32)
    model, features = folder / "model.safetensors", folder / "features.h5"
    save_file({"quantize.embedding.weight": torch.from_numpy(table if tables > 1 else table[0])}, model)
    with h5py.File(features, "w") as file:
        for name in NAMES[:streams]:
            centre = table[0][draw.integers(0, codes, rows)] if axis != "heads" else 0
            file[name] = centre + draw.standard_normal((rows, width), dtype=np.float32)
    words = ["optimize", str(model), "--features", str(features), "--metric", "euclidean", "--criterion", criterion]
    if tables > 1:
        words += ["--layout", "LKD" if axis == "levels" else "HKD", "--codebook", "quantize.embedding.weight"]
    return [*words, "-q"], [READ_AND_MULTIPLY, str(features), str(codes), str(tables), axis]


def clips(folder: Path, size: int) -> tuple[Words, Words]:
    """One dataset per clip of 16 rows, beside the same rows in one."""
    words, floor = optimize(folder, 16 * size, axis="rows")
    features = folder / "features.h5"
    with h5py.File(features) as file:
        whole = file[NAMES[0]][:]
    with h5py.File(features, "w") as file:
        for number, rows in enumerate(np.split(whole, size)):
            file[f"clip{number:05}/feat"] = rows
    with h5py.File(folder / "whole.h5", "w") as file:
        file["feat"] = whole
    return words, [READ_AND_MULTIPLY, str(folder / "whole.h5"), *floor[2:]]


def tensors(folder: Path, size: int) -> tuple[Words, Words]:
    """`toc inspect` of a model of so many tensors, a codebook among them; beside reading the header with safetensors."""
    model = folder / "model.safetensors"
    small = torch.zeros(4, 4)
    save_file(
        {f"layer{n}.weight": small.clone() for n in range(size)} | {"quantize.embedding.weight": torch.randn(64, 8)},
        model,
    )
    return ["inspect", str(model), "-q"], [HEADER, str(model)]


def seconds(folder: Path, size: int) -> tuple[Words, Words]:
    """An epoch of 24 steps of `toc train-fcid` on clips of so many seconds; beside its largest product, a contrast of every second with
    every other, forward and back."""
    batch, steps, width = 32, 24, 32
    draw = np.random.default_rng(0)
    data = folder / "data.h5"
    with h5py.File(data, "w") as file:
        for name, shape in (("video", (size, 2, 2, 16)), ("audio", (size, 32)), ("text", (8, 16))):
            file[f"train/{name}"] = draw.standard_normal((batch * steps, *shape), dtype=np.float32)
    sizes = ["--set", f"model.width={width}", "--set", "model.codebook.size=64", "--batch-size", str(batch)]
    words = ["train-fcid", str(data), "-o", str(folder / "run"), "--epochs", "1", *sizes, "-q"]
    return words, [CONTRAST, str(batch * size), str(width), str(steps)]


ROTATIONS = "D^3 of pca"  # measured beside every selection
AXES = {
    "rows": Axis((500_000, 1_000_000, 2_000_000, 4_000_000), partial(optimize, axis="rows", dim=32)),
    "codes": Axis((8192, 16_384, 32_768, 65_536), partial(optimize, axis="codes")),
    "dim": Axis((512, 1024, 2048, 4096), partial(optimize, axis="dim", rows=5000), ROTATIONS),
    "levels": Axis((2, 4, 8, 16), partial(optimize, axis="levels")),
    "heads": Axis((2, 4, 8, 16), partial(optimize, axis="heads")),
    "modalities": Axis((2, 4, 8, 16), partial(optimize, axis="modalities", criterion="xcov")),
    "datasets": Axis((2500, 5000, 10_000, 20_000), clips),
    "tensors": Axis((8000, 16_000, 32_000, 64_000), tensors),
    "seconds": Axis((12, 25, 50, 100), seconds, "size^2 contrasts"),
}
"""What may grow, by name."""
