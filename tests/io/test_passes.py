"""A pass opens each file once and unpacks each chunk once; the rows to be measured are taken in passing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from toc_cli.io.checkpoint import hdf5
from toc_cli.io.features import Stream, open_features
from toc_cli.io.features.packed import PackedItems

ROWS, WIDTH = 20_000, 8
X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype("f4")


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    opened: list[Counted]
    every: list[Counted]

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.bytes = 0
        Counted.opened.append(self)
        Counted.every.append(self)

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        count = super().readinto(buffer)
        self.bytes += count or 0
        return count


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Counted]]:
    Counted.opened, Counted.every = [], []
    monkeypatch.setattr(hdf5, "open_hdf5", lambda path: h5py.File(Counted(path), "r"))
    yield Counted
    for file in Counted.every:  # h5py closes its own alone
        file.close()


def passes(stream: Stream) -> dict[str, Callable[[], int]]:
    """What a run does with a stream, and how many rows each gives."""
    sample = stream.sample(1000)
    return {
        "all": lambda: sum(len(x) for _, x in stream.blocks(rows_multiple=64)),
        "sample": lambda: sum(len(x) for _, x in stream.ranges(sample)),
    }


@pytest.mark.parametrize("chunks", [(3000, WIDTH), (ROWS, WIDTH), (700, 3)])
def test_hdf5_chunks(tmp_path: Path, counted: type[Counted], chunks: tuple[int, int]) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=chunks, compression="gzip")
    stream = open_features(path, max_memory=8 << 20).datasets["x"]
    for rows, read in zip((ROWS, 1000), passes(stream).values(), strict=True):
        Counted.opened = []
        assert read() == rows
        assert len(counted.opened) == 1
        assert counted.opened[0].bytes < 1.2 * path.stat().st_size
    stream.hold(stream.sample(1000))
    passes(stream)["all"]()
    Counted.opened = []
    assert passes(stream)["sample"]() == 1000
    assert not counted.opened


def test_a_dataset_per_clip(tmp_path: Path, counted: type[Counted]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for at in range(200):
            file.create_dataset(f"clip{at}/x", data=X[100 * at : 100 * at + 100], chunks=(100, WIDTH))
    stream = open_features(tmp_path / "x.h5").datasets["x"]
    assert len(counted.opened) == 1, "listed in one go"
    for read in passes(stream).values():
        Counted.opened = []
        read()
        assert len(counted.opened) == 1


def test_compressed_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=X)
    starts = []
    begin = PackedItems._open
    monkeypatch.setattr(PackedItems, "_open", lambda self: (starts.append(1), begin(self))[1])
    stream = open_features(tmp_path / "x.npz", max_memory=1 << 20).datasets["x"]
    for read in passes(stream).values():
        starts.clear()
        read()
        assert len(starts) == 1, "decoded from its start once"
