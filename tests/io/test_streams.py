"""Which arrays are parts of one modality, in which order, with which units; and that parts read as one array."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toc_cli.errors import InputError, UsageError
from toc_cli.io.features import Features, Stream, open_features
from toc_cli.io.features.sampling import PIECES, spread


def clip(at: int, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(at).normal(size=(rows, 4)).astype("f4")


def rows_of(stream: Stream) -> np.ndarray:
    return np.concatenate([x for _, x in stream.blocks()])


def only(features: Features) -> Stream:
    (stream,) = features.datasets.values()
    return stream


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """clip1 … clip12 as one .npy each, of 1 to 12 rows."""
    for at in range(1, 13):
        np.save(tmp_path / f"clip{at}.npy", clip(at, at))
    return tmp_path


WHOLE = np.concatenate([clip(at, at) for at in range(1, 13)])


def test_a_folder_a_glob_a_list_and_many_flags_are_one_modality_in_natural_order(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clips / "files.txt").write_text("# two of them\nclip10.npy\n\nclip2.npy\n")
    for asked, name in {
        str(clips): "clip",
        f"{clips}/clip*.npy": "clip",
        f"audio={clips}/*.npy": "audio",
        f"audio={clips}": "audio",
    }.items():
        stream = only(open_features(asked))
        assert (stream.name, stream.unit, stream.units, stream.rows) == (name, "files", 12, 78)
        assert np.array_equal(rows_of(stream), WHOLE)
    flags = only(open_features([clips / f"clip{at}.npy" for at in (10, 2, 1)]))
    assert [part.path.stem for part in flags.parts] == ["clip1", "clip2", "clip10"]
    monkeypatch.chdir(clips.parent)
    listed = only(open_features(f"audio=@{clips}/files.txt"))
    assert [part.path.stem for part in listed.parts] == ["clip10", "clip2"], "a list is an order"


def test_lines_of_a_list_name_their_modalities(clips: Path) -> None:
    lines = [f"{'audio' if at % 2 else 'video'}={clips}/clip{at}.npy" for at in range(1, 13)]
    (clips / "files.txt").write_text("\n".join(lines))
    features = open_features(f"@{clips}/files.txt")
    assert {name: len(stream.parts) for name, stream in features.datasets.items()} == {"audio": 6, "video": 6}


def test_shards_are_one_modality_and_worded_files_are_several(tmp_path: Path) -> None:
    for at in range(3):
        with h5py.File(tmp_path / f"feats-{at}.h5", "w") as file:
            file["audio"] = clip(at)[None]
            file["video"] = clip(at + 9)[None]
    for argument in ([tmp_path / f"feats-{at}.h5" for at in (2, 0, 1)], f"{tmp_path}/feats-*.h5"):
        features = open_features(argument)
        assert list(features.datasets) == ["audio", "video"]
        assert features.datasets["audio"].shape == (3, 3, 4)
        assert np.array_equal(rows_of(features.datasets["audio"]), np.concatenate([clip(at) for at in range(3)]))
        assert features.datasets["audio"].pairs_with(features.datasets["video"])
    np.save(tmp_path / "audio.npy", clip(0))
    np.save(tmp_path / "video.npy", clip(0))
    two = open_features([tmp_path / "audio.npy", tmp_path / "video.npy"])
    assert list(two.datasets) == ["audio", "video"]
    one = only(open_features([f"both={tmp_path / 'audio.npy'}", f"both={tmp_path / 'video.npy'}"]))
    assert (one.name, one.rows) == ("both", 6)


def test_the_same_clips_under_each_word_of_a_folder_are_modalities(tmp_path: Path) -> None:
    for at in range(1, 4):
        np.save(tmp_path / f"clip{at}_audio.npy", clip(at, at))
        np.save(tmp_path / f"clip{at}_video.npy", clip(at + 9, at))
    features = open_features(tmp_path)
    assert list(features.datasets) == ["clip_audio", "clip_video"]
    assert features.datasets["clip_audio"].pairs_with(features.datasets["clip_video"])
    for name in ("cat", "dog", "7"):
        np.save(tmp_path / f"{name}.npy", clip(1))
    assert len(only(open_features(tmp_path)).parts) == 9


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["clip1/feat", "clip2/feat", "clip10/feat"], ["feat"]),
        (["clip1", "clip2", "clip10"], ["clip"]),
        (["1", "2", "10"], ["x"]),
        (["audio/1", "audio/2", "audio/10"], ["audio"]),
        (["clip1/audio", "clip1/video", "clip2/audio", "clip2/video"], ["audio", "video"]),
        (["audio", "video"], ["audio", "video"]),
        ([f"{a}{b}/feat" for a in "abcde" for b in "vwxyz"], ["feat"]),
        ([f"{a}{b}" for a in "abcde" for b in "vwxyz"], ["x"]),
    ],
)
def test_one_group_or_dataset_per_clip(tmp_path: Path, keys: list[str], names: list[str]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for at, key in enumerate(keys):
            file[key] = clip(at)
    features = open_features(tmp_path / "x.h5")
    assert list(features.datasets) == names
    order = [part.key for stream in features.datasets.values() for part in stream.parts]
    assert sorted(order) == sorted(keys)
    for stream in features.datasets.values():
        expected = [clip(keys.index(part.key)) for part in stream.parts]
        assert np.array_equal(rows_of(stream), np.concatenate(expected))
        assert stream.unit == ("datasets" if len(expected) > 1 else "rows")
    if "clip10" in keys[-1]:
        assert order == keys


def test_a_single_part_can_be_picked_by_its_key(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layer3"], file["layer12"] = clip(3), np.ones((3, 5), "f4")
    assert only(open_features(tmp_path / "x.h5", modalities=["layer3"])).name == "layer3"
    unlike = open_features(tmp_path / "x.h5")
    with pytest.raises(InputError, match=r"unlike width: .*layer3 \(3, 4\) .* and .*layer12 \(3, 5\).*--modality"):
        unlike.select({4})


def test_parts_of_unlike_type_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a1.npy", clip(0))
    np.save(tmp_path / "a2.npy", clip(0).astype("f8"))
    with pytest.raises(InputError, match=r"unlike type: .*a1.npy.* of float32 and .*a2.npy.* of float64"):
        open_features(tmp_path).select({4})


def test_what_names_no_features(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", clip(0))
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "doc").mkdir()
    (tmp_path / "doc" / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for argument, error, sentence in (
        (f"{tmp_path}/none*.npy", InputError, "No file matches"),
        (tmp_path / "wav", InputError, r"pictures or sound, not features\. Run a model over it: toc capture"),
        (tmp_path / "doc", InputError, r"folder without features \(it holds \.pdf\)"),
        (f"@{tmp_path}/empty.txt", InputError, "lists no file"),
        (f"@{tmp_path}/none.txt", InputError, "cannot be read"),
        ([f"x={tmp_path}/a.npy"] * 2, UsageError, "is given twice"),
    ):
        with pytest.raises(error, match=sentence):
            open_features(argument)


def test_units_are_clips_utterances_files_or_nothing(tmp_path: Path) -> None:
    units = {
        (5, 6, 4): ("clips", 5),
        (1, 30, 4): ("rows", 30),
        (30, 4): ("rows", 30),
        (5, 2, 3, 4): ("clips", 5),
    }
    for shape, expected in units.items():
        stream = only(open_features(np.zeros(shape, "f4")))
        assert (stream.unit, stream.units) == expected
    np.save(tmp_path / "train_0_2.npy", clip(0, 7))
    np.save(tmp_path / "train_1_2.npy", clip(1, 5))
    (tmp_path / "train_0_2.len").write_text("3\n4\n")
    (tmp_path / "train_1_2.len").write_text("1\n2\n2\n")
    hubert = only(open_features(tmp_path))
    assert (hubert.name, hubert.unit, hubert.bounds.tolist()) == ("train", "utterances", [0, 3, 7, 8, 10, 12])
    (tmp_path / "train_1_2.len").write_text("1\n2\n3\n")
    with pytest.raises(InputError, match=r"train_1_2\.len counts 6 rows in 3 utterances, .*npy has 5"):
        open_features(tmp_path)


def test_starts_beside_an_array_are_its_units(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"], file["features.tokens"] = clip(0, 9), np.zeros((9, 1), "i4")
        file["features.starts"] = [0, 2, 2, 7, 9]
        file["features.files"] = ["a.wav", "b.wav", "c.wav", "d.wav"]
    features = open_features(tmp_path / "x.h5")
    assert only(features).unit == "files"
    assert only(features).bounds.tolist() == [0, 2, 7, 9]
    for wrong in ([1, 9], [0, 8], [0, 5, 3, 9], [[0, 9]], [0.0, 9.0]):
        with h5py.File(tmp_path / "x.h5", "a") as file:
            del file["features.starts"]
            file["features.starts"] = wrong
        with pytest.raises(InputError, match=r"features\.starts"):
            open_features(tmp_path / "x.h5")


def test_a_plain_array_takes_the_units_of_the_one_it_is_paired_with(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", audio=clip(0, 12))
    for at in range(3):
        np.savez(tmp_path / f"v{at}.npz", video=clip(at, 4))
    features = open_features([tmp_path / "a.npz", *(tmp_path / f"v{at}.npz" for at in range(3))])
    audio, video = features.datasets.values()
    assert audio.unit == "files"
    assert audio.pairs_with(video)
    other = open_features({"a1": torch.zeros(2, 4), "b": torch.zeros(6, 4), "a2": torch.zeros(4, 4)})
    assert not any(other.datasets["a1"].pairs_with(stream) for name, stream in other.datasets.items() if name != "a1")


def test_labels_of_clips(tmp_path: Path) -> None:
    lengths = {1: 2, 2: 3, 10: 1}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for at, rows in lengths.items():
            file[f"clip{at}/feat"] = clip(at, rows)
            file[f"clip{at}/label"] = at
            file[f"clip{at}/label_frames"] = np.arange(rows) + 10 * at
        file["labels"] = [7, 8, 9]
    features = open_features(tmp_path / "x.h5")
    stream = features.datasets["feat"]
    wanted = {"label": [1, 1, 2, 2, 2, 10], "label_frames": [10, 11, 20, 21, 22, 100], "labels": [7, 7, 8, 8, 8, 9]}
    assert {name: labels.for_rows(stream).tolist() for name, labels in features.labels.items()} == wanted
    limited = open_features(tmp_path / "x.h5", limit=4).datasets["feat"]
    for name, labels in features.labels.items():
        assert labels.for_rows(limited).tolist() == [wanted[name][at] for at in limited.positions]
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["clip2/label"]
    assert not open_features(tmp_path / "x.h5").labels["label"].fits(stream), "a clip without its label"


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=300), share=st.floats(0, 1), plain=st.booleans()
)  # fmt: skip
def test_a_sample_holds_exactly_the_rows_asked_for_and_cuts_no_unit_in_two(
    sizes: list[int], share: float, plain: bool
) -> None:
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    rows = int(bounds[-1])
    wanted = max(1, int(share * rows))
    runs = spread(rows, None if plain else bounds, wanted)
    assert sum(stop - start for start, stop in runs) == wanted
    assert len(runs) <= PIECES
    assert all(0 <= a < b <= rows for a, b in runs)
    assert all(before[1] <= after[0] for before, after in pairwise(runs))
    if not plain:
        owners = [set((np.searchsorted(bounds, np.arange(a, b), side="right") - 1).tolist()) for a, b in runs]
        assert sum(map(len, owners)) == len(set().union(*owners)), "a unit is in one run only"
    if wanted == rows and not plain:
        assert {a for a, _ in runs} <= set(bounds.tolist())


@pytest.mark.parametrize("shape", [(300, 4), (20, 15, 4), (300, 1, 4)])
@pytest.mark.parametrize("limit", [1, 7, 129, 255, 300, 400])
def test_a_limit_takes_so_many_rows_where_the_sample_would(shape: tuple[int, ...], limit: int) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype("f4")
    whole = only(open_features(x))
    stream = only(open_features(x, limit=limit))
    assert stream.rows == min(limit, 300)
    assert np.array_equal(rows_of(stream), x.reshape(-1, 4)[stream.positions])
    assert stream.unit == whole.unit
    sample = [at for a, b in whole.sample(limit) for at in range(a, b)]
    assert stream.positions.tolist() == sample
    if stream.bounds is not None:
        assert len(stream.bounds) - 1 == whole.units_in(whole.sample(limit))


def test_runs_are_read_in_any_blocks_and_held_in_passing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clip(0, 5000))
    stream = only(open_features(tmp_path / "x.npy", max_memory=1 << 17))
    runs = stream.sample(255)
    wanted = np.concatenate([clip(0, 5000)[a:b] for a, b in runs])
    read = np.concatenate([x for _, x in stream.ranges(runs)])
    assert np.array_equal(read, wanted)
    stream.hold(runs)
    assert np.array_equal(rows_of(stream), clip(0, 5000))
    (tmp_path / "x.npy").unlink()
    assert np.array_equal(np.concatenate([x for _, x in stream.ranges(runs)]), wanted), "no file is needed any more"


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clip(0))
    features = open_features(tmp_path / "x.npy")
    features.refuse_changes()
    np.save(tmp_path / "x.npy", clip(0, 4))
    with pytest.raises(InputError, match=r"x\.npy changed while it was read"):
        features.refuse_changes()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_file_that_shrinks_ends_in_a_sentence(tmp_path: Path, order: str) -> None:
    x = np.asarray(np.random.default_rng(0).normal(size=(50_000, 4)), order=order)
    np.save(tmp_path / "x.npy", x)
    stream = only(open_features(tmp_path / "x.npy"))
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(InputError, match="became shorter"):
        rows_of(stream)
