"""Arrays that announce rows which no byte of the file holds."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from cli import make_checkpoint, toc


@pytest.mark.parametrize(("rows", "chunks"), [(2**40, (1024, 24)), (2**30, None)])
def test_hdf5_rows_that_were_never_written(rows: int, chunks: tuple[int, int] | None, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "m.safetensors")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("x", (rows, 24), "f4", chunks=chunks)
    done = toc("optimize", "m.safetensors", "--features", "f.h5", "--keep", "0.5", cwd=tmp_path)
    assert done.code == 3
    assert f"/x announces {rows * 96:,} bytes, of which 0 were ever written." in done.err


def test_a_numpy_shape_below_zero(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "m.safetensors")
    np.save(tmp_path / "f.npy", np.zeros((320, 24), np.float32))
    path = tmp_path / "f.npy"
    path.write_bytes(path.read_bytes().replace(b"(320, 24)", b"(-20, 24)"))
    done = toc("optimize", "m.safetensors", "--features", "f.npy", "--keep", "0.5", cwd=tmp_path)
    assert done.code == 3
    assert "has a broken numpy header: its shape is (-20, 24)." in done.err
