"""Every container of features gives the rows that its own library wrote, and says in features' words why it cannot."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.features import Features, Stream, open_features
from toc_cli.io.features.columns import parquet_sources
from toc_cli.io.features.tar import tar_sources

CLIPS = {f"utt{at}": np.random.default_rng(at).normal(size=(at + 2, 4)).astype("f4") for at in range(3)}
ALL = np.concatenate(list(CLIPS.values()))


def only(features: Features) -> Stream:
    (stream,) = features.datasets.values()
    return stream


def rows_of(stream: Stream) -> np.ndarray:
    return np.concatenate([x for _, x in stream.blocks()])


def check(path: Path | str, unit: str, name: str) -> Features:
    """The clips, whole and in small pieces."""
    features = open_features(path)
    stream = only(features)
    assert (stream.name, stream.unit, stream.units) == (name, unit, 3)
    assert np.array_equal(rows_of(stream), ALL)
    for start in range(len(ALL)):
        assert np.array_equal(next(iter(stream.blocks(start=start, stop=start + 2)))[1], ALL[start : start + 2])
    return features


def test_torch_files(tmp_path: Path) -> None:
    clips = {name: torch.from_numpy(x) for name, x in CLIPS.items()}
    torch.save(clips, tmp_path / "ids.pt")
    check(tmp_path / "ids.pt", "datasets", "utt")
    torch.save(list(clips.values()), tmp_path / "list.pt")
    check(tmp_path / "list.pt", "datasets", "list")
    (tmp_path / "folder").mkdir()
    for name, x in clips.items():
        torch.save(x, tmp_path / "folder" / f"{name}.pt")
    check(tmp_path / "folder", "files", "utt")
    torch.save({"feats": torch.from_numpy(ALL), "rest": ["a"]}, tmp_path / "one.pt")
    assert np.array_equal(rows_of(only(open_features(tmp_path / "one.pt"))), ALL)
    torch.save(torch.from_numpy(ALL).T.contiguous().T, tmp_path / "turned.pt")
    assert np.array_equal(rows_of(only(open_features(tmp_path / "turned.pt"))), ALL)
    half = torch.from_numpy(ALL).bfloat16()
    torch.save({"x": half, "tokens": torch.ones(9, 4, dtype=torch.int64)}, tmp_path / "half.pt")
    assert np.array_equal(rows_of(open_features(tmp_path / "half.pt").select({4})[0]), half.float().numpy())


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_folders_of_numpy_files(tmp_path: Path, suffix: str) -> None:
    for name, x in CLIPS.items():
        (np.save if suffix == "npy" else np.savez)(tmp_path / f"{name}.{suffix}", x)
    check(tmp_path, "files", "utt" if suffix == "npy" else "arr_0")


@pytest.mark.parametrize("method", [0, 2, 3, 5])
def test_kaldi_archives(tmp_path: Path, method: int) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    kaldiio.save_ark(str(tmp_path / "x.ark"), CLIPS, scp=str(tmp_path / "x.scp"), compression_method=method or None)
    expected = np.concatenate([x for _, x in kaldiio.load_ark(str(tmp_path / "x.ark"))])
    for path in (tmp_path / "x.ark", tmp_path / "x.scp", tmp_path):
        stream = only(open_features(path))
        assert (stream.unit, stream.units) == ("datasets", 3)
        assert np.allclose(rows_of(stream), expected, rtol=0, atol=1e-6 if method else 0)
    assert set(open_features(tmp_path / "x.scp").files) == {tmp_path / "x.scp", tmp_path / "x.ark"}


def test_kaldi_files_that_lie(tmp_path: Path) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    kaldiio.save_ark(str(tmp_path / "x.ark"), CLIPS)
    whole = (tmp_path / "x.ark").read_bytes()
    cases = {
        "cut.ark": (whole[:-3], "is truncated"),
        "size.ark": (whole.replace(b"\4\2\0\0\0", b"\4\2\0\0\x80", 1), "has a size of"),
        "kind.ark": (whole.replace(b"FM ", b"XM ", 1), "is no matrix of Kaldi"),
        "run.scp": (b"a sox a.wav |\n", "Commands and ranges are not read"),
        "gone.scp": (b"a gone.ark:2\n", "is not there"),
    }
    for name, (data, sentence) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=sentence):
            open_features(tmp_path / name)


def test_tables_of_lists(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, ipc, parquet

    rows = arrow.table({"id": list("abcdefghi"), "feat": list(ALL), "label": list(range(9))})
    fixed = arrow.table({"feat": arrow.FixedSizeListArray.from_arrays(ALL.reshape(-1), 4)})
    nested = arrow.array([x.tolist() for x in CLIPS.values()], arrow.list_(arrow.list_(arrow.float32())))
    clips = arrow.table({"feat": nested})
    for name, table in {"rows": rows, "fixed": fixed, "clips": clips}.items():
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        feather.write_feather(table, str(tmp_path / f"{name}.feather"), chunksize=2)
        with ipc.new_stream(tmp_path / f"{name}.arrow", table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
        for suffix in ("parquet", "feather", "arrow"):
            if name == "clips":
                check(tmp_path / f"{name}.{suffix}", "utterances", "feat")
            else:
                found = open_features(tmp_path / f"{name}.{suffix}")
                assert np.array_equal(rows_of(only(found)), ALL)
                assert [labels.read().tolist() for labels in found.labels.values()] == [list(range(9))] * (
                    name == "rows"
                )
    for bad, sentence in {
        "ragged": ({"x": [[1.0, 2.0], [1.0]]}, "lists of 1 and of 2 numbers|lists of 2 and of 1 numbers"),
        "gap": ({"x": [[1.0], None]}, "without a value"),
        "flat": ({"x": [1.0], "y": ["a"]}, "no column of lists of numbers \\(it has x, y\\)"),
    }.items():
        parquet.write_table(arrow.table(sentence[0]), tmp_path / f"{bad}.parquet")
        with pytest.raises(InputError, match=sentence[1]):
            open_features(tmp_path / f"{bad}.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        open_features(tmp_path / "cut.parquet")


def test_tables_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", lambda name: without(name))
    with pytest.raises(UsageError, match=r"pyarrow.*toc-cli\[arrow\]"):
        parquet_sources(tmp_path / "x.parquet")


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_webdataset_tars(tmp_path: Path) -> None:
    members = {}
    for name, x in CLIPS.items():
        members |= {
            f"train/{name}.feat.npy": npy(x),
            f"train/{name}.cls": name[-1].encode(),
            f"train/{name}.json": b"{}",
        }
    tar(tmp_path / "x.tar", members)
    features = check(tmp_path / "x.tar", "datasets", "train/feat")
    (labels,) = features.labels.values()
    assert labels.for_rows(only(features)).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    tar(tmp_path / "images.tar", {"a.jpg": b"x", "b.jpg": b"x"})
    with pytest.raises(InputError, match=r"tar without features \(it holds jpg\).*toc capture"):
        open_features(tmp_path / "images.tar")


def saved(tensors: object, **options: bool) -> bytes:
    out = io.BytesIO()
    torch.save(tensors, out, **options)
    return out.getvalue()


@pytest.mark.parametrize("ending", ["feat.pt", "pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_members_of_tars_are_read_where_they_lie(tmp_path: Path, ending: str, zipped: bool) -> None:
    members = {
        f"train/{name}.{ending}": saved(torch.from_numpy(x.copy()), _use_new_zipfile_serialization=zipped)
        for name, x in CLIPS.items()
    }
    tar(tmp_path / "x.tar", members)
    check(tmp_path / "x.tar", "datasets", "train/feat" if "feat" in ending else "train")


def test_torch_members_of_tars_with_several_tensors(tmp_path: Path) -> None:
    members = {}
    for name, x in CLIPS.items():
        held = torch.from_numpy(x.copy())
        members[f"{name}.pt"] = saved({"feat": held.T.contiguous().T, "tokens": torch.arange(len(x)), "text": name})
    tar(tmp_path / "x.tar", members)
    assert {key.rpartition("/")[2] for key in tar_sources(tmp_path / "x.tar")} == {"feat", "tokens"}
    features = open_features(tmp_path / "x.tar")
    stream = next(stream for stream in features.datasets.values() if stream.dtype.kind == "f")
    assert np.array_equal(np.concatenate([block for _, block in stream.blocks()]), ALL)


class Payload:
    def __init__(self, call: Callable[..., object], *arguments: str) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_members_of_tars_run_nothing(tmp_path: Path, zipped: bool) -> None:
    def hostile(held: object) -> None:
        tar(tmp_path / "x.tar", {"b.pt": saved(held, _use_new_zipfile_serialization=zipped)})

    opened, system = Payload(open, str(tmp_path / "ran"), "w"), Payload(os.system, f"touch {tmp_path / 'ran'}")
    hostile([system, torch.ones(3, 4)])
    with pytest.raises(InputError, match=r"x\.tar: b\.pt asks to run .*nothing of it was run"):
        open_features(tmp_path / "x.tar")
    hostile(opened)
    with pytest.raises(InputError, match=r"x\.tar: b\.pt holds pickled objects"):
        open_features(tmp_path / "x.tar")
    hostile([opened, torch.ones(3, 4)])
    assert np.array_equal(rows_of(only(open_features(tmp_path / "x.tar"))), np.ones((3, 4)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"hello", "no file of torch.save"),
        (pickle.dumps([1, 2]), "no file of torch.save"),
        (saved(torch.ones(100, 4))[:-80], "truncated"),
        (saved(torch.ones(100, 4), _use_new_zipfile_serialization=False)[:-80], "damaged"),
    ],
)
def test_torch_members_of_tars_that_are_damaged(tmp_path: Path, data: bytes, said: str) -> None:
    tar(tmp_path / "x.tar", {"a.pt": data, "b.pt": saved(torch.ones(100, 4))})
    with pytest.raises(InputError, match=rf"x\.tar: a\.pt .*{said}"):
        open_features(tmp_path / "x.tar")


def test_matlab_matrices_have_their_axes_back(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).normal(size=(3, 5, 4))
    with h5py.File(tmp_path / "x.mat", "w", userblock_size=512) as file:
        file["feat"], file["clips"] = ALL.T, clip.T
        references = [file.create_dataset(f"#refs#/{name}", data=x.T).ref for name, x in CLIPS.items()]
        file.create_dataset("cells", data=np.array(references, dtype=h5py.ref_dtype)[:, None])
    with open(tmp_path / "x.mat", "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    features = open_features(tmp_path / "x.mat")
    assert set(features.datasets) == {"feat", "clips", "cells"}
    assert np.array_equal(rows_of(features.datasets["feat"]), ALL)
    assert np.array_equal(rows_of(features.datasets["cells"]), ALL)
    assert features.datasets["cells"].unit == "datasets"
    assert np.array_equal(rows_of(features.datasets["clips"]), clip.reshape(-1, 4))
    assert features.datasets["clips"].units == 3


def test_a_matlab_variable_whose_name_is_no_text(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.mat", "w", userblock_size=512) as file:
        file[b"x\x8e"] = ALL.T
    with open(tmp_path / "x.mat", "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    [stream] = open_features(tmp_path / "x.mat").datasets.values()
    assert np.array_equal(rows_of(stream), ALL)


def test_sentences_talk_of_features(tmp_path: Path) -> None:
    cases = {
        "x.csv": (b"1.0,2.0\n", r"text file, not features.*np\.loadtxt"),
        "x.bin": (b"\x00\x01" * 99, r"no features file that toc reads"),
        "x.pkl": (b"\x80\x04N.", "Python pickle.*not features.*np.savez"),
        "x.mat": (b"MATLAB 5.0 MAT-file".ljust(600), "before version 7.3.*-v7.3"),
        "x.wav": (b"RIFF", "picture or sound, not features.*toc capture"),
    }
    for name, (data, sentence) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=sentence):
            open_features(tmp_path / name)
