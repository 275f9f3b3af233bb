"""What reading features costs `toc optimize`, by how they are stored: beside decoding them once by their own library and the run on
plain ones; and what measuring costs beyond one size. CPU seconds of whole processes on one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from toc_cli.bench.processes import run_python, run_toc

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
DIM, CODES = 64, 512
CLIPS = 400
DECODE = """
import time
began = time.process_time()
if sys.argv[1].endswith(".npz"):
    import numpy
    began = time.process_time()
    numpy.load(sys.argv[1])["x"]
else:
    import h5py
    began = time.process_time()
    with h5py.File(sys.argv[1]) as file:
        file.visititems(lambda name, item: item[:] if isinstance(item, h5py.Dataset) else None)
print(time.process_time() - began)
"""


def hdf5(path: Path, x: np.ndarray, **storage: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=x, **storage)


def per_clip(path: Path, x: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for number, rows in enumerate(np.array_split(x, CLIPS)):
            file[f"clip{number:05}/x"] = rows


STORED: dict[str, tuple[str, Callable[[Path, np.ndarray], None], str]] = {
    "savez_compressed": ("x.npz", lambda path, x: np.savez_compressed(path, x=x), "<= 1.3"),
    "gzip, chunks of 131,072 rows": (
        "x.h5", lambda path, x: hdf5(path, x, chunks=(min(len(x), 131_072), DIM), compression="gzip"), "<= 1.3"
    ),
    "gzip, one chunk": ("x.h5", lambda path, x: hdf5(path, x, chunks=x.shape, compression="gzip"), "<= 1.3"),
    "chunks of 6,250 x 2": ("x.h5", lambda path, x: hdf5(path, x, chunks=(min(len(x), 6250), 2)), "<= 1.5"),
    "chunks of 65,536 x 1": ("x.h5", lambda path, x: hdf5(path, x, chunks=(min(len(x), 65_536), 1)), "<= 1.5"),
    f"{CLIPS} datasets of clips": ("x.h5", per_clip, f"+{CLIPS} ms"),
}  # fmt: skip
"""How features may be stored, and the bound of the run over (decoding once + the run on plain ones)."""


def measure_reading(rows: int) -> list[dict[str, Any]]:
    """One row per way to store features (rows, 64) of a codebook of 512."""
    draw = np.random.default_rng(0)
    table = draw.standard_normal((CODES, DIM), dtype=np.float32)
    x = table[draw.integers(0, CODES, rows)] + draw.standard_normal((rows, DIM), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        save_file({"quantize.embedding.weight": torch.from_numpy(table)}, model)

        def run(features: Path) -> float:
            words = ["optimize", str(model), "--features", str(features), "--metric", "euclidean", "--force", "-q"]
            return run_toc(words, ONE_THREAD).cpu_seconds

        hdf5(folder / "plain.h5", x)
        plain = run(folder / "plain.h5")
        found: list[dict[str, Any]] = [{"features": "contiguous", "cpu_seconds": plain}]
        for what, (file, write, bound) in STORED.items():
            write(folder / file, x)
            decode = float(run_python(DECODE, [str(folder / file)], ONE_THREAD).said)
            mine = run(folder / file)
            (folder / file).unlink()
            found.append(
                {"features": what, "cpu_seconds": mine, "decode_seconds": decode, "ratio": mine / (decode + plain), "bound": bound}
            )  # fmt: skip
    return found


MEASURED = {
    "one size": [],
    "--sweep 0.1:1.0:10": ["--sweep", "0.1:1.0:10"],
    "--eval-rows all": ["--eval-rows", "all"],
    "both": ["--sweep", "0.1:1.0:10", "--eval-rows", "all"],
}
BOUNDS = {"--sweep 0.1:1.0:10": "7 s", "--eval-rows all": "8 s", "both": "40 s"}
"""For 200,000 rows of each of two modalities."""


def measure_measuring(rows: int) -> list[dict[str, Any]]:
    """One row per size of the measuring: two modalities (rows, 256), a codebook of 1,024."""
    draw = np.random.default_rng(0)
    table = draw.standard_normal((1024, 256), dtype=np.float32)
    found = []
    with tempfile.TemporaryDirectory() as name:
        model, features = Path(name) / "model.safetensors", Path(name) / "x.h5"
        save_file({"quantize.embedding.weight": torch.from_numpy(table)}, model)
        with h5py.File(features, "w") as file:
            for modality in ("audio", "video"):
                centre = table[draw.integers(0, len(table), rows)]
                file[modality] = centre + draw.standard_normal((rows, 256), dtype=np.float32)
        for what, more in MEASURED.items():
            words = [
                "optimize",
                str(model),
                "--features",
                str(features),
                "--metric",
                "euclidean",
                "--force",
                "-q",
                *more,
            ]
            used = run_toc(words, ONE_THREAD)
            bound = BOUNDS.get(what) if rows == 200_000 else None
            found.append({"measuring": what, "cpu_seconds": used.cpu_seconds, "peak_bytes": used.peak, "bound": bound})
    return found
