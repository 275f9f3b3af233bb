"""What choosing costs on this machine, each beside what it is measured against: `discriminant` and `auto` beside plainer runs of
`toc optimize`, merging codes, `toc decode` and `toc remap` beside reading and writing the same bytes."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toc_cli.bench.road import run_command, timed, write_inputs
from toc_cli.io.artefact import read_artefact
from toc_cli.ops.codes import merges
from toc_cli.pipeline.decode import decode_tokens
from toc_cli.pipeline.remap import remap_tokens

DIM, CODES = 256, 1024
MERGED = (65536, 64)
"""Codes and dimensions of the merging."""
TIMES = 32
"""How many times as many tokens as features are rewritten: bytes enough to time."""


def measure_choice(rows: int, repeats: int, merged: tuple[int, int] = MERGED) -> list[dict[str, Any]]:
    """One row each: seconds, those of what it is held against, their ratio and the bound of it. The programs run as processes,
    interleaved; the median counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features, model = write_inputs(folder, rows, DIM, CODES)
        artefact = folder / "out.toc.safetensors"
        given = ["optimize", str(model), "--features", str(features), "--metric", "euclidean"]
        given += ["--force", "-q", "-o", str(artefact)]
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(repeats):
            for criterion in ("toc", "discriminant", "pca", "auto"):
                found.setdefault(criterion, []).append(run_command([*given, "--criterion", criterion], {}))
        run_command([*given, "--codes", str(CODES // 2)], {})
        old = np.flatnonzero(read_artefact(artefact).tensors["0.code_map"][0, 0].numpy() >= 0)
        draw = np.random.default_rng(0)
        new_ids = draw.integers(0, CODES // 2, rows).astype(np.uint16)
        old_ids = old[draw.integers(0, len(old), rows * TIMES)].astype(np.uint16)
        table = [
            _beside("discriminant / toc", found["discriminant"], found["toc"], "<= 1.3"),
            _beside("auto / pca", found["auto"], found["pca"], "<= 2.5"),
            _merging(*merged),
            _streamed("decode", folder, new_ids, artefact, repeats),
            _streamed("remap", folder, old_ids, artefact, repeats),
        ]
    return table


def _beside(what: str, runs: list[dict[str, float]], others: list[dict[str, float]], bound: str) -> dict[str, Any]:
    mine, theirs = (statistics.median(run["seconds"] for run in found) for found in (runs, others))
    peak = statistics.median(run["peak"] for run in runs)
    return {"what": what, "seconds": mine, "beside_seconds": theirs, "ratio": mine / theirs,
            "bound": bound, "peak_bytes": peak}  # fmt: skip


def _merging(count: int, dim: int) -> dict[str, Any]:
    """Every merge of random codes of unlike usage, in this process: the peak is that of all it has done."""
    codes = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    usage = np.random.default_rng(0).integers(1, 100, count)
    seconds = timed(lambda: merges(codes, usage))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    whole = (count, dim) == MERGED
    return {
        "what": f"merge {count:,} x {dim}",
        "seconds": seconds,
        "bound": "60 s" if whole else None,
        "peak_bytes": peak,
    }


def _streamed(what: str, folder: Path, tokens: np.ndarray, artefact: Path, repeats: int) -> dict[str, Any]:
    """A program over tokens in this process, beside reading its input and writing the bytes of its output, to the disk both."""
    source, target = folder / f"{what}.npy", folder / f"{what}.h5"
    np.save(source, tokens)
    run = decode_tokens if what == "decode" else remap_tokens
    mine, disk = [], []
    for _ in range(repeats):
        mine.append(timed(lambda: run(source, artefact, target, force=True)))
        disk.append(timed(lambda: _copied(source, folder / "bytes", target.stat().st_size)))
    seconds, floor = statistics.median(mine), statistics.median(disk)
    return {"what": f"{what} / disk", "seconds": seconds, "beside_seconds": floor, "ratio": seconds / floor,
            "bound": "<= 1.43"}  # fmt: skip


def _copied(source: Path, target: Path, count: int) -> None:
    """Read a file whole, and write `count` bytes that reach the disk."""
    block = np.random.default_rng(0).bytes(1 << 22)
    source.read_bytes()
    with target.open("wb") as file:
        for start in range(0, count, len(block)):
            file.write(block[: count - start])
        file.flush()
        os.fsync(file.fileno())
    target.unlink()
