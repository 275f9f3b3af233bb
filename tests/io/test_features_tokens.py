"""Recorded tokens are found beside their features, and what is no tokens of these rows is refused with its name and row."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from toc_cli.errors import InputError
from toc_cli.io.features import open_features

X = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
T = np.arange(4 * 5 * 2).reshape(4, 5, 2)


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


def rows(path: Path | list[str | Path], name: str, ranges: list[tuple[int, int]], **options: int) -> np.ndarray:
    features = open_features(path, **options)
    found = features.tokens[name]
    return np.concatenate([block for _, block in found.ranges(features.datasets[name], ranges)])


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".safetensors"])
@pytest.mark.parametrize("names", [("x", "x.tokens"), ("x", "tokens")])
@pytest.mark.parametrize("dtype", ["int64", "int16", "uint8"])
def test_tokens_stand_beside_their_features(tmp_path: Path, suffix: str, names: tuple[str, str], dtype: str) -> None:
    path = write(tmp_path / f"f{suffix}", {names[0]: X, names[1]: T.astype(dtype)})
    features = open_features(path)
    assert list(features.datasets) == ["x"]
    assert features.tokens["x"].trailing(features.datasets["x"]) == (2,)
    assert np.array_equal(rows(path, "x", [(0, 20)]), T.reshape(20, 2))
    assert np.array_equal(rows(path, "x", [(3, 4), (7, 18)]), T.reshape(20, 2)[[3, *range(7, 18)]])


@pytest.mark.parametrize(
    ("shape", "trailing"),
    [((20,), ()), ((4, 5), ()), ((20, 2), (2,)), ((4, 5, 2), (2,)), ((20, 2, 3), (2, 3)), ((4, 5, 2, 3), (2, 3))],
)
def test_lead_axes_or_rows(tmp_path: Path, shape: tuple[int, ...], trailing: tuple[int, ...]) -> None:
    tokens = np.arange(np.prod(shape)).reshape(shape)
    path = write(tmp_path / "f.h5", {"x": X, "x.tokens": tokens})
    features = open_features(path)
    assert features.tokens["x"].trailing(features.datasets["x"]) == trailing
    assert np.array_equal(rows(path, "x", [(2, 19)]), tokens.reshape(20, *trailing)[2:19])


def test_named_files_and_files_beside_each_other(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "a.tokens.npy", T)
    features = open_features([tmp_path / "a.npy", tmp_path / "a.tokens.npy"])
    assert (list(features.datasets), list(features.tokens)) == (["a"], ["a"])
    write(tmp_path / "f.h5", {"x": X, "x.tokens": T})
    assert list(open_features(f"audio={tmp_path / 'f.h5'}").tokens) == ["audio"]


def test_tokens_of_several_parts_are_one_stream(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"clip{number}.npz", {"x": X + number, "x.tokens": T + number})
    features = open_features(str(tmp_path / "clip*.npz"))
    (name,) = features.datasets
    found = np.concatenate([block for _, block in features.tokens[name].ranges(features.datasets[name], [(15, 45)])])
    assert np.array_equal(found, np.concatenate([T + n for n in range(3)]).reshape(60, 2)[15:45])
    write(tmp_path / "clip3.npz", {"x": X})
    with pytest.raises(InputError, match="1 of its 4 arrays have no tokens"):
        open_features(str(tmp_path / "clip*.npz"))


def test_a_limited_stream_takes_the_tokens_of_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5", {"x": X, "x.tokens": T})
    features = open_features(path, limit=7)
    stream = features.datasets["x"]
    found = np.concatenate([block for _, block in features.tokens["x"].ranges(stream, [(0, 7)])])
    assert np.array_equal(found, T.reshape(20, 2)[stream.positions])


def test_another_channel_axis_is_named_where_the_tokens_fit_it(tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5", {"x": X.transpose(0, 2, 1), "x.tokens": T})
    features = open_features(path)
    with pytest.raises(InputError, match="gives tokens for 4 rows") as caught:
        features.tokens["x"].trailing(features.datasets["x"])
    assert "--channel-axis 1" in caught.value.hint
    assert np.array_equal(rows(path, "x", [(0, 20)], channel_axis=1), T.reshape(20, 2))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (T.reshape(20, 2)[:19], "gives tokens for 19 rows; the features .* have 20"),
        (T.astype(np.float32), "is float32: tokens are whole numbers"),
        (np.zeros((4, 5, 1, 1, 1), int), "has 3 axes after the rows"),
        (T > 3, "is bool: tokens are whole numbers"),
    ],
)
def test_what_is_no_tokens_of_these_rows(tmp_path: Path, tokens: np.ndarray, said: str) -> None:
    features = open_features(write(tmp_path / "f.h5", {"x": X, "x.tokens": tokens}))
    with pytest.raises(InputError, match=said):
        features.tokens["x"].trailing(features.datasets["x"])


def test_a_lone_token_file_and_labels_are_what_they_were(tmp_path: Path) -> None:
    assert not open_features(write(tmp_path / "a.h5", {"tokens": T})).tokens
    features = open_features(write(tmp_path / "b.h5", {"x": X, "label": np.arange(4), "tokens": T}))
    assert (list(features.tokens), list(features.labels)) == (["x"], ["label"])
    two = open_features(write(tmp_path / "c.h5", {"x": X, "y": X, "tokens": T}))
    assert not two.tokens
