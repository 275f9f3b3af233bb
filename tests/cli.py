"""Run the program inside the test process, as its console script does."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from toc_cli.commands import run

SCRIPT = Path(sys.executable).with_name("toc")
"""The installed console script."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@contextlib.contextmanager
def inside(folder: Path | None) -> Iterator[None]:
    before = Path.cwd()
    if folder is not None:
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def toc(*arguments: object, cwd: Path | None = None) -> Done:
    """Exit code, stdout and stderr of `toc ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    redirected = contextlib.ExitStack()
    redirected.enter_context(inside(cwd))
    redirected.enter_context(mock.patch.object(sys, "argv", ["toc", *map(str, arguments)]))
    redirected.enter_context(contextlib.redirect_stdout(out))
    redirected.enter_context(contextlib.redirect_stderr(err))
    with redirected:
        code = run()
    return Done(code, out.getvalue(), err.getvalue())


def make_checkpoint(path: Path, codes: torch.Tensor | None = None, *, codes_count: int = 64, dim: int = 24) -> Path:
    """A taming EMAVQ checkpoint (no projection) at `path`: its running mean tells that the lookup is euclidean."""
    if codes is None:
        codes = torch.randn(codes_count, dim, generator=torch.Generator().manual_seed(1)) + 0.3
    stem = "quantize.embedding"
    mean = {f"{stem}.embed_avg": codes.clone(), f"{stem}.cluster_size": torch.ones(len(codes))}
    save_file({f"{stem}.weight": codes, **mean, "decoder.conv.weight": torch.ones(4, 4)}, path)
    return path


def make_features(path: Path, rows: int = 400, dim: int = 24, **datasets: np.ndarray) -> Path:
    """An HDF5 file with one modality `x` (rows, dim) float32, or the datasets given."""
    with h5py.File(path, "w") as file:
        if not datasets:
            datasets = {"x": np.random.default_rng(0).normal(0.3, 1, (rows, dim)).astype(np.float32)}
        for name, values in datasets.items():
            file[name] = values
    return path
