"""Any block size, start and container gives the rows that one whole read gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from toc_cli.errors import InputError, UsageError
from toc_cli.io.features import Stream, open_features
from toc_cli.io.features.prefetch import prefetch
from toc_cli.io.features.source import boxes

SHAPE = (13, 6, 5, 8)


def values(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(dtype)


def rows_of(array: np.ndarray, axis: int) -> np.ndarray:
    """Reference: the channel axis last, the others flattened in C order."""
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """File and dataset of the same array in each container and layout."""
    folder = tmp_path_factory.mktemp("features")
    x = values()
    np.save(folder / "c.npy", x)
    np.save(folder / "fortran.npy", np.asfortranarray(x))
    np.savez(folder / "stored.npz", x=x)
    np.savez_compressed(folder / "packed.npz", x=x)
    save_file({"x": torch.from_numpy(x)}, folder / "x.safetensors")
    with h5py.File(folder / "x.h5", "w") as file:
        file["contiguous"] = x
        file["big_endian"] = x.astype(">f4")
        file.create_dataset("chunked", data=x, chunks=(2, 3, 5, 8))
        file.create_dataset("items", data=x, chunks=(1, 4, 2, 3))
        file.create_dataset("gzip", data=x, chunks=(4, 6, 5, 2), compression="gzip", shuffle=True)
        names = list(file)
    found = {path.name: (path, "") for path in folder.iterdir() if path.suffix == ".npy"}
    found |= {name: (folder / name, "x") for name in ("stored.npz", "packed.npz", "x.safetensors")}
    return found | {name: (folder / "x.h5", name) for name in names}


def dataset_of(path: Path, name: str, **options: int) -> Stream:
    datasets = open_features(path, **options).datasets  # type: ignore[arg-type]
    return datasets[name] if name else next(iter(datasets.values()))


CONTAINERS = ["c.npy", "fortran.npy", "stored.npz", "packed.npz", "x.safetensors",
              "contiguous", "big_endian", "chunked", "items", "gzip"]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    container=st.sampled_from(CONTAINERS),
    axis=st.integers(-4, 3),
    start=st.integers(0, 100),
    length=st.integers(0, 2000),
    rows_multiple=st.integers(1, 9),
    max_memory=st.sampled_from([1 << 30, 200_000, 30_000]),
)
def test_any_split_of_the_stream_is_the_whole_array(
    files: dict[str, tuple[Path, str]],
    container: str,
    axis: int,
    start: int,
    length: int,
    rows_multiple: int,
    max_memory: int,
) -> None:
    path, name = files[container]
    dataset = dataset_of(path, name, channel_axis=axis, max_memory=max_memory)
    reference = rows_of(values(), axis)
    assert (dataset.rows, dataset.width) == reference.shape
    if container == "packed.npz" and axis in (0, -4):
        with pytest.raises(InputError, match="cannot be streamed"):
            list(dataset.blocks())
        return
    blocks = list(dataset.blocks(start=start, stop=start + length, rows_multiple=rows_multiple))
    expected = reference[start : start + length]
    got = np.concatenate([block for _, block in blocks] or [expected])
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)
    firsts = [first for first, _ in blocks]
    assert firsts == [start + sum(len(block) for _, block in blocks[:i]) for i in range(len(blocks))]
    assert all((first - start) % rows_multiple == 0 for first in firsts)


@given(lead=st.lists(st.integers(1, 4), max_size=4), data=st.data())
def test_boxes_cover_a_range_of_rows_once_and_in_order(lead: list[int], data: st.DataObject) -> None:
    grid = np.arange(int(np.prod(lead))).reshape(lead)
    start = data.draw(st.integers(0, grid.size))
    stop = data.draw(st.integers(start, grid.size))
    covered = []
    for index, begin, end in boxes(tuple(lead), start, stop):
        part = grid[index].reshape(-1)
        assert part.tolist() == list(range(begin, end))
        covered += part.tolist()
    assert covered == list(range(start, stop))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_each_dtype_arrives_as_stored_and_bfloat16_as_exact_float32(tmp_path: Path, dtype: str) -> None:
    tensor = torch.from_numpy(values()).to(getattr(torch, dtype))
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    for axis in (-1, 1):
        dataset = dataset_of(tmp_path / "x.safetensors", "x", channel_axis=axis)
        (_, block), = dataset.blocks()  # fmt: skip
        assert block.dtype == np.dtype("float32" if dtype == "bfloat16" else dtype) == dataset.dtype
        assert np.array_equal(block, rows_of(tensor.to(torch.float64).numpy(), axis))


def test_names_of_modalities(tmp_path: Path) -> None:
    x = np.ones((4, 3), "f4")
    np.save(tmp_path / "audio.npy", x)
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"] = x
            file["deep/y" + name] = x
            file["label"] = np.arange(4)
    assert list(open_features(str(tmp_path / "audio.npy")).datasets) == ["audio"]
    assert list(open_features([f"speech={tmp_path / 'audio.npy'}"]).datasets) == ["speech"]
    both = open_features([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert list(both.datasets) == ["deep/ya", "a/x", "deep/yb", "b/x"]
    assert list(both.labels) == ["a/label", "b/label"]
    assert both.files == (tmp_path / "a.h5", tmp_path / "b.h5")
    assert list(open_features(f"m={tmp_path / 'a.h5'}").datasets) == ["m/deep/ya", "m/x"]
    assert list(open_features(tmp_path / "a.h5", modalities=["x"]).datasets) == ["x"]
    with pytest.raises(UsageError, match=r"no modality z in the features\. There is: deep/ya, x"):
        open_features(tmp_path / "a.h5", modalities=["z"])
    with pytest.raises(UsageError, match="would be called speech"):
        open_features([f"speech={tmp_path / 'audio.npy'}", f"speech={tmp_path / 'audio.npy'}"])


def test_labels_stand_for_the_rows_of_their_clip(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["video"] = values()
        file["audio"] = values()[:, :, 0]
        file["other"] = values()[:5]
        file["label"] = np.arange(13, dtype="u1")
        file["labels_per_second"] = np.arange(78).reshape(13, 6)
        file["label_scores"] = np.ones((13, 8))
    features = open_features(tmp_path / "x.h5")
    assert list(features.labels) == ["label", "labels_per_second"]
    video, audio, other = (features.datasets[name] for name in ("video", "audio", "other"))
    label, second = features.labels.values()
    assert label.for_rows(video).tolist() == [i for i in range(13) for _ in range(30)]
    assert second.for_rows(audio).tolist() == list(range(78))
    assert second.read().shape == (13, 6)
    assert not label.fits(other)
    with pytest.raises(InputError, match=r"labels label \(13,\) do not fit"):
        label.for_rows(other)


def test_select_takes_what_has_the_width(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz", audio=values()[..., :4], video=values(), tokens=np.ones((5, 8), int), mask=np.ones((5, 8), bool)
    )  # fmt: skip
    features = open_features(tmp_path / "x.npz")
    assert [dataset.name for dataset in features.select({8})] == ["video"]
    assert [dataset.name for dataset in features.select({4, 8})] == ["audio", "video"]
    with pytest.raises(InputError, match=r"has 7 or 9 channels: there is audio \(13, 6, 5, 4\), video \(13, 6, 5, 8\)"):
        features.select({7, 9})
    with pytest.raises(InputError, match=r"along axis 1 of audio: --channel-axis 1"):
        features.select({6})
    assert [d.name for d in open_features(tmp_path / "x.npz", channel_axis=1).select({6})] == ["audio", "video"]


def test_one_vector_is_one_row(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(8.0))
    assert [block.tolist() for _, block in dataset_of(tmp_path / "x.npy", "").blocks()] == [[list(range(8))]]


def test_the_reader_can_be_left_early_and_used_again(files: dict[str, tuple[Path, str]]) -> None:
    before = threading.active_count()
    for container in CONTAINERS:
        dataset = dataset_of(*files[container], max_memory=30_000)
        blocks = dataset.blocks()
        first = next(blocks)[1]
        blocks.close()  # type: ignore[attr-defined]
        assert np.array_equal(next(dataset.blocks())[1], first)
    assert threading.active_count() == before


def test_prefetch_reads_one_ahead_in_another_thread_and_passes_errors_on() -> None:
    made: list[int] = []
    threads = set()

    def items() -> Iterator[int]:
        try:
            for i in range(5):
                made.append(i)
                threads.add(threading.current_thread())
                yield i
            raise ZeroDivisionError
        finally:
            made.append(-1)

    ahead = prefetch(items())  # type: ignore[arg-type]
    assert next(ahead) == 0
    assert next(ahead) == 1
    assert set(made) <= {0, 1, 2}
    assert [next(ahead) for _ in range(3)] == [2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    assert made == [0, 1, 2, 3, 4, -1]
    assert threading.current_thread() not in threads
    stopped = prefetch(items())  # type: ignore[arg-type]
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert made[-1] == -1
