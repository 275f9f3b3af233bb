"""How fast the main job runs on this machine: the criterion against the published double loop, `optimize` against its floor.

The floor of `optimize` is reading the features with h5py plus the bare single-precision product of the assignment.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from toc_cli.bench.processes import run_toc
from toc_cli.ops.criteria.base import Known
from toc_cli.ops.criterion import CRITERIA

CRITERION_SHAPE = (16384, 256)
LOOP_PAIRS = 4000
"""Pairs of codes that the published loop is timed on; its full time is that times K (K - 1) over it."""


def measure_criterion(repeats: int = 5) -> dict[str, Any]:
    """Seconds of the closed form at K=16384, D=256, and of the published double loop, extrapolated from some of its pairs."""
    codes = torch.randn(CRITERION_SHAPE, generator=torch.Generator().manual_seed(0))
    closed = statistics.median(timed(lambda: CRITERIA["toc"].rank([Known(codes)])) for _ in range(repeats))
    pairs = timed(lambda: published_pairs(codes, LOOP_PAIRS))
    count = CRITERION_SHAPE[0]
    return {
        "codes": count,
        "dim": CRITERION_SHAPE[1],
        "seconds": closed,
        "published_loop_seconds": pairs * count * (count - 1) / LOOP_PAIRS,
        "extrapolated_from_pairs": LOOP_PAIRS,
    }


def published_pairs(codes: torch.Tensor, pairs: int) -> torch.Tensor:
    """The first `pairs` steps of the double loop over codes (K, D): one product of two rows added at a time."""
    total = torch.zeros(codes.shape[1])
    for step in range(pairs):
        i, j = step // len(codes), 1 + step % (len(codes) - 1)
        total += codes[i] * codes[j]
    return total


def measure_optimize(
    rows: int = 1_000_000, dim: int = 256, codes: int = 1024, repeats: int = 3
) -> list[dict[str, Any]]:
    """Wall seconds and peak memory of `toc optimize` and `toc quantize`, each in a process of its own, with the compiled search
    and with the one on torch operations, interleaved with their floor: one row per program."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features, model = write_inputs(folder, rows, dim, codes)
        artefact = folder / "out.toc.safetensors"
        jobs = {
            "toc optimize": ["optimize", str(model), "--features", str(features), "-o", str(artefact)],
            "toc quantize": ["quantize", str(features), "--codebook", str(artefact), "-o", str(folder / "tokens.h5")],
        }
        runs: dict[tuple[str, str], list[dict[str, float]]] = {}
        floors: list[dict[str, float]] = []
        for _ in range(repeats):
            floors.append(_floor(features, model))
            for search, switch in (("compiled", {}), ("torch", {"TOC_NATIVE": "0"})):
                for job, words in jobs.items():
                    runs.setdefault((job, search), []).append(run_command([*words, "--force", "-q"], switch))
    read, product = (statistics.median(run[field] for run in floors) for field in ("read", "product"))
    floor = read + product
    table: list[dict[str, Any]] = [
        {"program": "floor: h5py read", "seconds": read}, {"program": "floor: bare sgemm", "seconds": product},
        {"program": "floor", "seconds": floor, "x_floor": 1.0},
    ]  # fmt: skip
    for (job, search), found in runs.items():
        seconds, start, peak = (
            statistics.median(run[field] for run in found) for field in ("seconds", "start", "peak")
        )
        table.append(
            {
                "program": job, "search": search, "seconds": seconds, "x_floor": seconds / floor,
                "start_seconds": start, "x_floor_without_start": (seconds - start) / floor, "peak_bytes": peak,
            }
        )  # fmt: skip
    return table


def write_inputs(folder: Path, rows: int, dim: int, codes: int) -> tuple[Path, Path]:
    """Features around the codes of a random codebook, written once."""
    generator = np.random.default_rng(0)
    table = generator.standard_normal((codes, dim), dtype=np.float32)
    model, features = folder / "model.safetensors", folder / "features.h5"
    save_file({"quantize.embedding.weight": torch.from_numpy(table)}, model)
    with h5py.File(features, "w") as file:
        out = file.create_dataset("x", (rows, dim), np.float32)
        for start in range(0, rows, 65536):
            stop = min(rows, start + 65536)
            chosen = table[generator.integers(0, codes, stop - start)]
            out[start:stop] = chosen + generator.standard_normal((stop - start, dim), dtype=np.float32)
    return features, model


def _floor(features: Path, model: Path) -> dict[str, float]:
    """Reading the file once with h5py, and the bare product of its rows with the codes, both block by block."""
    from safetensors.torch import load_file

    codes = load_file(model)["quantize.embedding.weight"]
    reading = product = 0.0
    with h5py.File(features) as file:
        data = file["x"]
        block = np.empty((16384, data.shape[1]), np.float32)
        out = torch.empty(len(block), len(codes))
        for start in range(0, len(data), len(block)):
            stop = min(len(data), start + len(block))
            began = time.perf_counter()
            data.read_direct(block, np.s_[start:stop], np.s_[: stop - start])
            read = time.perf_counter()
            torch.mm(torch.from_numpy(block[: stop - start]), codes.T, out=out[: stop - start])
            reading += read - began
            product += time.perf_counter() - read
    return {"read": reading, "product": product}


def run_command(words: list[str], switch: dict[str, str]) -> dict[str, float]:
    """One run of the command line as a process: its wall seconds and peak memory, and the seconds that importing torch takes."""
    used = run_toc(words, switch)
    start = timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
    return {"seconds": used.seconds, "start": start, "peak": used.peak}


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
