"""The two converter scripts of examples/: what they write is what the data room reads."""

from __future__ import annotations

import pickle
import runpy
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import ROOT, shared_folder
from toc_cli.fcid.data import open_split, split_names


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(script: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")

    return call


def test_avdigits(run: Callable[..., None], tmp_path: Path) -> None:
    folder = shared_folder("TOC_AVDIGITS", "avdigits")
    if folder is None:
        pytest.skip("AV-Digits is not here: set TOC_AVDIGITS to its folder")
    run("convert_avdigits.py", folder / "prototype.h5", tmp_path / "avdigits.h5")
    assert set(split_names(tmp_path / "avdigits.h5")) == {
        "train",
        "val",
        *(f"{a}_{b}" for a in ("ave", "avvp") for b in ("train", "test")),
    }
    train, test = (open_split(tmp_path / "avdigits.h5", name) for name in ("train", "ave_test"))
    assert train.label_names == []
    assert {name: (s.length, *s.spatial, s.width) for name, s in train.specs.items()} == {
        "video": (10, 4, 4, 32),
        "audio": (10, 128),
        "text": (10, 64),
    }
    batch = train.read(np.arange(256))
    assert [round(float(batch.x[name].std()), 1) for name in ("video", "audio")] == [1.0, 1.0]  # z-scores
    words = batch.x["text"].abs().sum(-1) > 0
    assert (words == batch.mask["text"]).all()
    clip, attribute, second = (test.label(name) for name in ("label_clip", "label_attribute", "label_second.audio"))
    assert set(clip) == set(range(10))
    assert set(attribute) == set(range(20))
    assert (attribute % 10 == clip).all()
    assert ((second == clip[:, None]) | (second == 10)).all()
    with h5py.File(folder / "prototype.h5") as file:
        events, near = file["ave_test/events"][:], file["ave_test/near_v"][:]
    assert (clip == events[:, 0]).all()
    assert (attribute // 10 == near.max(axis=1)).all()


def test_ave(run: Callable[..., None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    visual, audio = rng.normal(size=(9, 3, 2, 2, 4)), rng.normal(size=(9, 3, 5))
    labels = np.eye(4, dtype=np.int16)[[[3, 1, 1], [3, 3, 3], [0, 0, 3], *[[2, 2, 2]] * 6]]
    for name, values in (("visual_feature", visual), ("audio_feature", audio), ("labels", labels)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["avadataset"] = values
    for name, rows in (("train", [4, 2, 0]), ("test", [1, 8])):
        with h5py.File(tmp_path / f"{name}_order.h5", "w") as file:
            file["order"] = rows
    run("convert_published.py", "ave", tmp_path, tmp_path / "ave.h5")
    train = open_split(tmp_path / "ave.h5", "train")
    batch = train.read(np.arange(3))
    np.testing.assert_allclose(batch.x["video"], visual[[4, 2, 0]], rtol=1e-6)
    np.testing.assert_allclose(batch.x["audio"], audio[[4, 2, 0]], rtol=1e-6)
    assert train.label("label_clip").tolist() == [2, 0, 1]
    assert train.label("label_second").tolist() == [[2, 2, 2], [0, 0, 3], [3, 1, 1]]
    assert open_split(tmp_path / "ave.h5", "test").label("label_clip").tolist() == [-1, 2]


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def npy(array: np.ndarray, folder: Path) -> bytes:
    np.save(folder / "array.npy", array)
    return (folder / "array.npy").read_bytes()


def test_zips(run: Callable[..., None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    video = {
        name: rng.normal(size=(steps, 2, 2, 4)).astype(np.float32) for name, steps in (("a", 3), ("b", 2), ("c", 3))
    }
    audio = {name: rng.normal(size=(3, 5)) for name in ("a", "c")}
    zipped(tmp_path / "video.zip", {f"clips/{name}.npy": npy(x, tmp_path) for name, x in video.items()})
    zipped(tmp_path / "audio.zip", {f"{name}.pkl": pickle.dumps(x) for name, x in audio.items()})
    (tmp_path / "train.txt").write_text("c,dog\nb\tcat\n")
    (tmp_path / "test.txt").write_text("a,dog\n")
    splits = [f"--split={name}={tmp_path / name}.txt" for name in ("train", "test")]
    modalities = [f"--modality={name}={tmp_path / name}.zip" for name in ("video", "audio")]
    run("convert_published.py", "zips", tmp_path / "vgg.h5", *modalities, *splits)
    train = open_split(tmp_path / "vgg.h5", "train")
    batch = train.read(np.array([0, 1]))
    np.testing.assert_allclose(batch.x["video"][0], video["c"])
    np.testing.assert_allclose(batch.x["video"][1, :2], video["b"])
    assert batch.mask["video"].tolist() == [[True] * 3, [True, True, False]]
    assert batch.present["audio"].tolist() == [True, False]
    np.testing.assert_allclose(batch.x["audio"][0], audio["c"], rtol=1e-6)
    assert train.label("label_clip").tolist() == [1, 0]


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("owned"),))


def test_a_pickle_that_would_run_something_is_refused(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zipped(tmp_path / "audio.zip", {"a.pkl": pickle.dumps(Payload())})
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(SystemExit, match=r"'a.pkl' of .* can't be read: it asks for pathlib"):
        run("convert_published.py", "zips", "x.h5", "--modality", "audio=audio.zip", "--split", "train=train.txt")
    assert not (tmp_path / "owned").exists()
    zipped(tmp_path / "audio.zip", {"a.pkl": pickle.dumps(np.array([[Payload()]], dtype=object))})
    assert not Path("x.h5").exists()
    with pytest.raises(SystemExit, match="can't be read: it asks for"):
        run("convert_published.py", "zips", "x.h5", "--modality", "audio=audio.zip", "--split", "train=train.txt")
    assert not (tmp_path / "owned").exists()


def test_damaged_sources_are_sentences(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "torn.zip").write_bytes(b"PK torn")
    whole = npy(np.zeros((3, 5)), tmp_path)
    zipped(tmp_path / "short.zip", {"a.npy": whole[:-9]})
    zipped(tmp_path / "empty.zip", {"a.pkl": b""})
    for source, sentence in (
        ("audio=torn.zip", "torn.zip can't be read"),
        ("audio=gone.zip", "gone.zip can't be read"),
        ("audio=short.zip", "'a.npy' of .* can't be read"),
        ("audio=empty.zip", "'a.pkl' of .* can't be read"),
        ("audio.zip", "should be NAME=PATH"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            run("convert_published.py", "zips", "x.h5", "--modality", source, "--split", "train=train.txt")
        assert not Path("x.h5").exists()
    for name, values in (("audio_feature", np.zeros((9, 3, 5))), ("train_order", np.array([8, -1]))):
        with h5py.File(f"{name}.h5", "w") as file:
            file["d"] = values
    with pytest.raises(SystemExit, match=r"row -1, .* has 9 rows"):
        run("convert_published.py", "ave", tmp_path, "x.h5")
