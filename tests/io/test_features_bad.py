"""Features that cannot be features, files that lie, and the bound on memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from toc_cli.errors import InputError, TocError, UsageError
from toc_cli.io.features import open_features


def read_all(path: Path, name: str = "x", **options: Any) -> None:
    features = open_features(path, **options)
    for _ in features.datasets[name].blocks():
        pass


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_row_that_is_not_finite_is_named(tmp_path: Path, dtype: str, value: str) -> None:
    x = np.ones((5000, 8), dtype)
    x[4321, 3] = float(value)
    x[4999] = np.nan
    np.save(tmp_path / "x.npy", x)
    kind = value.strip("-").replace("nan", "NaN").replace("inf", "Inf")
    with pytest.raises(InputError, match=rf"x \(5000, 8\) holds {kind} in row 4,321\."):
        read_all(tmp_path / "x.npy", max_memory=100_000)


@pytest.mark.parametrize(("dtype", "large"), [("float16", 6e4), ("float32", 3e38), ("float64", 1e308)])
def test_large_numbers_are_finite(tmp_path: Path, dtype: str, large: float) -> None:
    np.save(tmp_path / "x.npy", np.full((100, 8), large, dtype))
    read_all(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.ones((4, 8), int), r"x \(4, 8\) is int64: integer numbers are no features"),
        (np.ones((4, 8), bool), "is bool: boolean numbers"),
        (np.ones((4, 8), complex), "is complex128: complex numbers"),
        (np.ones((4, 8), np.longdouble), "is float128: extended numbers"),
        (np.ones((0, 8), "f4"), r"x \(0, 8\) is empty"),
    ],
)
@pytest.mark.parametrize("pick", [True, False])
def test_arrays_that_cannot_be_features(tmp_path: Path, array: np.ndarray, sentence: str, pick: bool) -> None:
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(InputError, match=sentence):
        open_features(tmp_path / "x.npz", modalities=["x"] if pick else []).select({8})
    with pytest.raises(InputError, match=sentence):
        read_all(tmp_path / "x.npz")


def test_an_empty_dataset_beside_a_good_one_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", good=np.ones((4, 8)), x=np.ones((0, 8)))
    with pytest.raises(InputError, match=r"x \(0, 8\) is empty"):
        open_features(tmp_path / "x.npz").select({8})


def test_files_that_are_no_features(fixtures_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "lfs.h5").write_text("version https://git-lfs.github.com/spec/v1\n")
    for path, sentence in {
        tmp_path / "no.h5": "does not exist",
        tmp_path / "empty": "is a folder without features",
        tmp_path / "lfs.h5": "Git LFS pointer",
        fixtures_dir / "containers" / "object_array.npy": "array of Python objects",
        fixtures_dir / "containers" / "truncated.safetensors": "is truncated",
    }.items():
        with pytest.raises(InputError, match=sentence):
            open_features(path)
    with pytest.raises(UsageError, match="neither a file nor NAME=PATH"):
        open_features("=x.h5")


def test_hdf5_features_in_other_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((4, 8))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink("secret.h5", "/x")
    with h5py.File(tmp_path / "storage.h5", "w") as file:
        file.create_dataset("x", (4, 8), "f4", external=[("/etc/passwd", 0, 128)])
    for name, sentence in {"link.h5": "external links", "storage.h5": "external storage"}.items():
        with pytest.raises(InputError, match=f"{sentence} (are|is) refused"):
            open_features(tmp_path / name)


def test_a_broken_chunk_names_the_rows(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset(
            "x", data=np.random.default_rng(0).normal(size=(64, 8)), chunks=(16, 8), compression="gzip"
        )
        offset = data.id.get_chunk_info(2).byte_offset
    with open(tmp_path / "x.h5", "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 64)
    with pytest.raises(InputError, match="rows 0 to 64 of /x cannot be read"):
        read_all(tmp_path / "x.h5")


def test_a_broken_packed_array_is_damaged(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(64, 8)))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[1000:1100] = b"\xff" * 100
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        read_all(tmp_path / "x.npz")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1000, 8), "f4"))
    dataset = open_features(tmp_path / "x.npy").datasets["x"]
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match="became shorter"):
        list(dataset.blocks())


def test_a_chunk_beyond_the_memory_limit_says_how_much_it_needs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (4096, 256), "f4", chunks=(4096, 256), compression="gzip")
    with pytest.raises(UsageError, match="needs 4,194,304 bytes at a time") as caught:
        read_all(tmp_path / "x.h5", max_memory=1 << 20)
    needed = int(caught.value.hint.split()[-1].rstrip("."))
    read_all(tmp_path / "x.h5", max_memory=needed)


def test_names_from_the_file_are_escaped(tmp_path: Path) -> None:
    name = "\x1b[31mred"
    save_file({name: torch.full((2, 8), torch.nan)}, tmp_path / "x.safetensors")
    for fails in (
        lambda: read_all(tmp_path / "x.safetensors", name),
        lambda: open_features(tmp_path / "x.safetensors").select({3}),
    ):
        with pytest.raises(TocError) as caught:
            fails()
        assert "\x1b" not in str(caught.value)
        assert r"\x1b[31mred" in str(caught.value)


STREAM = """
import resource, sys
from toc_cli.io.features import open_features
before = None
for path in sys.argv[1:]:
    for axis in (-1, 1):
        dataset = next(iter(open_features(path, max_memory=64 << 20, channel_axis=axis).datasets.values()))
        next(iter(dataset.blocks(stop=1)))
        before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert sum(len(block) for _, block in dataset.blocks(rows_multiple=1024)) == dataset.rows
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, path, axis)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_stays_within_the_limit_whatever_the_size(tmp_path: Path) -> None:
    """256 MB of features (a hole in the disk, or packed zeros) pass through 64 MiB, in every container."""
    shape = (1000, 250, 256)
    np.lib.format.open_memmap(tmp_path / "raw.npy", "w+", "f4", shape).flush()
    with h5py.File(tmp_path / "chunked.h5", "w") as file:
        file.create_dataset("x", shape, "f4", chunks=(4, 250, 64))
        file["x"][::4, 0, ::64] = 1  # each chunk is written
    with h5py.File(tmp_path / "gzip.h5", "w") as file:
        file.create_dataset("x", shape, "f4", chunks=(4, 250, 64), compression="gzip")
        file["x"][::4, ::50, ::64] = 1
    np.savez_compressed(tmp_path / "packed.npz", x=np.zeros(shape, "f4"))
    paths = sorted(str(path) for path in tmp_path.iterdir())
    run = subprocess.run(
        [sys.executable, "-c", STREAM, *paths], capture_output=True, text=True, timeout=300, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 2 * len(paths)
    assert all(int(line.split()[0]) * 1024 <= 64 << 20 for line in lines), run.stdout
