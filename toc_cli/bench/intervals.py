"""How often a 95 % interval of the record holds the true figure, where rows of one clip resemble each other.

Clips are drawn from one population, so that every figure has a true value: that of a large sample of clips of one row. Each
replicate is a run of its own, by the code that writes the record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from toc_cli.io.features import open_features
from toc_cli.pipeline import Options, plan_optimization

CODES, DIM = 16, 8
ROWS = 32_768
TRUE_ROWS = 400_000
UNITS = (1, 64, 256, 1024)
FIGURES = ("token_agreement", "excess_distortion", "distortion", "snr_db")
WITHIN = 0.5
"""Standard deviation of what a clip shares beyond its code, and of what each row has of its own."""


def population(codes: np.ndarray, clips: int, rows: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Modalities of the same clips, (clips, rows, D) each: a clip has one code and one offset, which both hear; each has an
    offset of its own, and each row its noise."""
    shape = (clips, 1, codes.shape[1])
    heard = codes[generator.integers(len(codes), size=clips)][:, None] + generator.normal(size=shape) * WITHIN
    while True:
        own = generator.normal(size=shape) * WITHIN
        noise = generator.normal(size=(clips, rows, codes.shape[1])) * WITHIN
        yield (heard + own + noise).astype(np.float32)


def measured(checkpoint: Path, arrays: Mapping[str, np.ndarray], eval_rows: int | None, seed: int) -> dict[str, Any]:
    """The codebook's entry of the record of one run."""
    options = Options(keep="0.5", metric="euclidean", eval_rows=eval_rows, seed=seed)
    return plan_optimization(checkpoint, open_features(arrays), options).metrics[0]


class Replication:
    """Runs on fresh clips of one population, and the true figures that their intervals should hold."""

    def __init__(self, folder: Path, rows: int = ROWS, true_rows: int = TRUE_ROWS) -> None:
        self._rows = rows
        self._codes = np.random.default_rng(0).normal(size=(CODES, DIM)).astype(np.float32)
        self._checkpoint = folder / "codes.safetensors"
        save_file({"quantize.embedding.weight": torch.from_numpy(self._codes)}, self._checkpoint)
        large = next(population(self._codes, true_rows, 1, np.random.default_rng(1)))
        self.truth: dict[str, float] = measured(self._checkpoint, {"x": large}, None, 0)["after"]

    def coverage(self, unit: int, modalities: int, replicates: int) -> dict[str, Any]:
        """How often the intervals of the pruned form held the truth, clips having `unit` rows."""
        held = dict.fromkeys(FIGURES, 0)
        entry: dict[str, Any] = {}
        for at in range(replicates):
            drawn = population(self._codes, self._rows // unit, unit, np.random.default_rng([2, unit, modalities, at]))
            arrays = {f"m{index}": next(drawn) for index in range(modalities)}
            entry = measured(self._checkpoint, arrays, self._rows // 2, at)
            for name in FIGURES:
                low, high = entry["ci95"]["after"][name]
                held[name] += low <= self.truth[name] <= high
        shares = {f"{name}_covered": held[name] / replicates for name in FIGURES}
        units = entry["sample"]["units"]
        return {"modalities": modalities, "rows_per_unit": unit, "units": units, "replicates": replicates, **shares}


def measure_intervals(replicates: int = 200) -> list[dict[str, Any]]:
    """Coverage of the intervals of the pruned form's figures: a row per length of clip, and one for a pair of modalities."""
    with tempfile.TemporaryDirectory() as folder:
        replication = Replication(Path(folder))
        return [
            *(replication.coverage(unit, 1, replicates) for unit in UNITS),
            replication.coverage(256, 2, replicates),
        ]
