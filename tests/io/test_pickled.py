"""k-means by joblib, pickle and numpy-in-torch: the numbers of scikit-learn itself, and nothing of a file is ever run."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint import Edits, open_checkpoint
from toc_cli.io.families import detect

joblib = pytest.importorskip("joblib")
cluster = pytest.importorskip("sklearn.cluster")

ROWS = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)


def fitted(kind: str = "KMeans") -> Any:
    return getattr(cluster, kind)(n_clusters=8, random_state=0, n_init=1).fit(ROWS)


@pytest.mark.parametrize("kind", ["KMeans", "MiniBatchKMeans"])
@pytest.mark.parametrize("compress", [0, ("gzip", 3), ("bz2", 3), ("xz", 1), ("lzma", 1), ("zlib", 1), ("zlib", 9)])
def test_centres_of_a_joblib_file_are_scikit_learns(tmp_path: Path, kind: str, compress: Any) -> None:
    model = fitted(kind)
    joblib.dump(model, tmp_path / "km.bin", compress=compress)
    checkpoint = open_checkpoint(tmp_path / "km.bin")
    (book,) = detect(checkpoint)
    assert (book.family, book.metric, book.num_codes, book.dim) == ("k-means (scikit-learn)", "euclidean", (8,), 6)
    codes = book.parts(checkpoint).tables[0][0]
    assert torch.equal(codes, torch.from_numpy(model.cluster_centers_))
    assert checkpoint.values["classes",] == [f"sklearn.cluster._kmeans.{kind}"]
    assert torch.equal(
        torch.cdist(torch.from_numpy(ROWS), codes).argmin(1), torch.from_numpy(model.predict(ROWS)).long()
    )
    with pytest.raises(UsageError, match="never written"):
        checkpoint.write(tmp_path / "x", Edits())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_centres_of_plain_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    model = fitted()
    (tmp_path / "km.pkl").write_bytes(pickle.dumps({"spk": model, "n": 3}, protocol))
    checkpoint = open_checkpoint(tmp_path / "km.pkl")
    assert torch.equal(checkpoint.get("spk/cluster_centers_"), torch.from_numpy(model.cluster_centers_))
    assert checkpoint.values["n",] == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_arrays_in_a_torch_file(tmp_path: Path, zipped: bool) -> None:
    centres = np.asfortranarray(ROWS[:8].astype(">f8"))
    tree = {0: {"cluster_centers_": centres, "n": np.int64(6), "best": np.float32(0.5)}, "flags": np.arange(3) > 1}
    torch.save(tree, tmp_path / "km.pt", _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(tmp_path / "km.pt")
    assert checkpoint.get("0/cluster_centers_").dtype == torch.float64
    assert np.array_equal(checkpoint.get("0/cluster_centers_").numpy(), centres)
    assert checkpoint.get("flags").tolist() == [False, False, True]
    assert (checkpoint.values["0", "n"], checkpoint.values["0", "best"]) == (6, 0.5)
    assert checkpoint.read_only


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u2", "?", "c8", ">f4", ">i2", "c16"])
@pytest.mark.parametrize("order", "CF")
def test_every_type_and_order_of_numpy(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.array(np.arange(12).reshape(3, 4), dtype, order=order)
    joblib.dump([array, array[:, :0]], tmp_path / "a.joblib")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([array, array[:, :0]], 5))
    for path in tmp_path.iterdir():
        checkpoint = open_checkpoint(path)
        assert np.array_equal(checkpoint.get("0").numpy(), array)
        assert checkpoint.get("1").shape == (3, 0)


def test_a_plain_pickle_of_torch_tensors(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": weight, "part": weight[1:3, ::2], "half": weight.bfloat16()}))
    checkpoint = open_checkpoint(tmp_path / "x.pkl")
    assert torch.equal(checkpoint.get("w"), weight)
    assert torch.equal(checkpoint.get("part"), weight[1:3, ::2])
    assert torch.equal(checkpoint.get("half"), weight.bfloat16())


def test_arrays_of_objects(tmp_path: Path) -> None:
    mixed = np.empty(2, object)
    mixed[:] = [ROWS[:3], ROWS[:4]]
    joblib.dump({"x": mixed, "y": ROWS}, tmp_path / "list.joblib")
    assert np.array_equal(open_checkpoint(tmp_path / "list.joblib").get("x/1").numpy(), ROWS[:4])
    assert np.array_equal(open_checkpoint(tmp_path / "list.joblib").get("y").numpy(), ROWS)


def test_what_stands_before_a_kmeans_is_named(tmp_path: Path) -> None:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    joblib.dump(make_pipeline(StandardScaler(), PCA(3), cluster.KMeans(4)).fit(ROWS), tmp_path / "pipe.joblib")
    joblib.dump({"scaler": StandardScaler().fit(ROWS), "km": fitted()}, tmp_path / "pair.joblib")
    joblib.dump(cluster.BisectingKMeans(4).fit(ROWS), tmp_path / "tree.joblib")
    for name, sentence in {
        "pipe": "StandardScaler, PCA.*before its k-means",
        "pair": "StandardScaler",
        "tree": "BisectingKMeans",
    }.items():
        with pytest.raises(InputError, match=sentence):
            open_checkpoint(tmp_path / f"{name}.joblib")


# Nothing runs.


class Call:
    """Asks the reader to call `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def calls(mark: Path) -> list[Call]:
    """Each leaves `mark` behind when it runs."""
    name = str(mark)
    return [
        Call(os.mkdir, name),
        Call(os.system, f"touch {name}"),
        Call(eval, f"__import__('os').mkdir({name!r})"),
        Call(exec, f"open({name!r}, 'w').close()"),
        Call(subprocess.call, ["touch", name]),
        Call(shutil.copy, "/etc/hostname", name),
        Call(np.save, name, np.zeros(1)),
        Call(torch.save, 1, name),
        Call(joblib.dump, 1, name),
        Call(Path.mkdir, mark),
    ]


class Holder:
    """An object whose state holds another."""

    def __init__(self, thing: object) -> None:
        self.thing = thing


def estimator(thing: object) -> Any:
    model = fitted()
    model.init = thing
    return model


PLACES: list[Callable[[Call], Any]] = [
    lambda call: call,
    lambda call: {"w": ROWS, "x": call},
    lambda call: {call: ROWS},
    lambda call: [ROWS, (1, call)],
    lambda call: estimator(call),
    lambda call: np.array([call, None], object),
    lambda call: Holder(call),
]


def saved_by_torch(tree: Any, path: Path) -> None:
    torch.save(tree, path)


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "pickle0.pkl": lambda tree, path: path.write_bytes(pickle.dumps(tree, 0)),
    "pickle2.pkl": lambda tree, path: path.write_bytes(pickle.dumps(tree, 2)),
    "pickle5.pkl": lambda tree, path: path.write_bytes(pickle.dumps(tree, 5)),
    "plain.joblib": joblib.dump,
    "gz.joblib": lambda tree, path: joblib.dump(tree, path, compress=("gzip", 1)),
    "zip.pt": torch.save,
    "legacy.pt": lambda tree, path: torch.save(tree, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_payload_runs_in_any_place(tmp_path: Path, writer: str) -> None:
    """Ten calls in seven places in seven kinds of file: 490 files."""
    mark, path = tmp_path / "ran", tmp_path / writer
    seen = 0
    for call, place in itertools.product(calls(mark), PLACES):
        WRITERS[writer](place(call), path)
        before = set(tmp_path.iterdir())
        with suppress(InputError):
            checkpoint = open_checkpoint(path)
            for key in checkpoint.infos:
                checkpoint.get(key)
        assert set(tmp_path.iterdir()) == before
        seen += 1
    assert seen == 70


def test_the_payloads_would_run(tmp_path: Path) -> None:
    for call in calls(tmp_path / "ran"):
        pickle.loads(pickle.dumps({"x": call}))
        (left,) = tmp_path.iterdir()
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def test_a_payload_that_is_named_is_named(tmp_path: Path) -> None:
    joblib.dump({"x": Call(os.system, "ls")}, tmp_path / "x.joblib")
    with pytest.raises(InputError, match=r"asks to run posix\.system|asks to run nt\.system"):
        open_checkpoint(tmp_path / "x.joblib")


# Bounded, and no way in.


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def call_of(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"

HOSTILE = {
    "a key of nested tuples": b"}(" + b")" + b"\x85" * 100_000 + b"K\x01u",
    "a set of nested tuples": b"\x8f(" + b")" + b"\x85" * 100_000 + b"\x90",
    "nested lists": b"]" * 100_000,
    "a frame of terabytes": b"\x95" + struct.pack("<Q", 1 << 42),
    "bytes of terabytes": b"\x8e" + struct.pack("<Q", 1 << 42),
    "a bytearray of terabytes": b"\x96" + struct.pack("<Q", 1 << 42),
    "text of gigabytes": b"X" + struct.pack("<I", (1 << 32) - 1),
    "a memo of billions": b"Nr" + struct.pack("<I", (1 << 32) - 1),
    "bytes of a huge count": call_of("builtins", "bytearray", b"\x8a\x06" + (1 << 44).to_bytes(6, "little")),
    "an array of a huge shape": call_of("numpy.core.multiarray", "_reconstruct") + b"(K\x01" + b"(\x8a\x06"
    + (1 << 44).to_bytes(6, "little") + b"t" + call_of("numpy", "dtype", text("f4")) + b"\x89C\x00tb",
    "an array of another size": call_of("numpy.core.multiarray", "_reconstruct") + b"(K\x01(K\x09t"
    + call_of("numpy", "dtype", text("f4")) + b"\x89C\x04abcdtb",
    "the state of a rebuilding function": b"cnumpy.core.multiarray\n_reconstruct\n}" + text("_function") + b"Nsb",
    "the state of the class of arrays": b"cnumpy\nndarray\n}" + text("array") + b"Nsb",
    "a state on text": text("x") + b"}" + text("y") + b"Nsb",
    "an extension code": b"\x82\x01",
    "a persistent id": STORAGE,
    "an out-of-band buffer": b"\x97",
    "an integer of many digits": b"I" + b"9" * 10_000 + b"\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04" + HOSTILE[name] + b".")
    tracemalloc.start()
    with pytest.raises(InputError):
        open_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()


def test_a_storage_of_a_torch_file_keeps_its_attributes(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    main = next(name for name in members if name.endswith("/data.pkl"))
    members[main] = b"\x80\x02}" + text("w") + STORAGE + b"}" + text("nbytes") + b"J\x00\x00\x00\x7fsbs."
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    with pytest.raises(InputError, match="damaged"):
        open_checkpoint(path)


@pytest.mark.parametrize("compress", [("gzip", 9), ("bz2", 9), ("xz", 6), ("zlib", 9)])
def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path, compress: Any) -> None:
    joblib.dump({"x": np.zeros(1 << 27, np.uint8), "cluster_centers_": ROWS}, tmp_path / "x.joblib", compress=compress)
    tracemalloc.start()
    with pytest.raises(InputError, match="refused as a bomb"):
        open_checkpoint(tmp_path / "x.joblib")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("compress", [0, ("gzip", 1), ("xz", 1)])
def test_a_pickle_cut_or_broken_anywhere_is_read_or_refused(tmp_path: Path, compress: Any) -> None:
    buffer = io.BytesIO()
    joblib.dump(fitted(), buffer, compress=compress)
    data, generator = buffer.getvalue(), np.random.default_rng(0)
    versions = [data[:cut] for cut in range(1, len(data), max(len(data) // 60, 1))]
    for _ in range(120):
        broken = bytearray(data)
        broken[generator.integers(len(data))] = generator.integers(256)
        versions.append(bytes(broken))
    for version in versions:
        (tmp_path / "x.joblib").write_bytes(version)
        with suppress(InputError):
            checkpoint = open_checkpoint(tmp_path / "x.joblib")
            for key in checkpoint.infos:
                checkpoint.get(key)
