"""Files that lie, that are broken, or that want to run something: each is refused with its own sentence."""

from __future__ import annotations

import argparse
import bz2
import collections
import functools
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from toc_cli.errors import InputError
from toc_cli.io.checkpoint import open_checkpoint

SENTENCES = {
    "containers/pickle_payload.pt": r"asks to run __builtin__\.print",
    "containers/torchscript.pt": "is a TorchScript archive",
    "containers/empty.pt": r"is empty \(0 bytes\)",
    "containers/truncated.pt": "is truncated: its zip directory",
    "containers/truncated.safetensors": "is truncated: 7,520 of 19,834 bytes",
    "containers/whole_module_pickle.pt": r"holds pickled objects \(__main__.AE\)",
}


@pytest.mark.parametrize(("name", "sentence"), SENTENCES.items())
def test_each_refused_fixture_has_its_own_sentence(
    fixtures_dir: Path, capfd: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        open_checkpoint(fixtures_dir / name)
    assert "\n" not in str(caught.value)
    assert "TOC-FIXTURE" not in "".join(capfd.readouterr())


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for key in checkpoint.infos:
        checkpoint.get(key)


def refused(path: Path, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        read_all(path)
    assert "\x1b" not in str(caught.value)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"GGUF\x03\x00\x00\x00", "truncated or damaged"),
        (b"\x7fELF\x02\x01\x01\x00", "in no container that toc reads"),
        (b"PK\x03\x04 but no more", "zip directory is missing"),
        (pickle.dumps([1, 2]), "is a Python pickle"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', ", "broken numpy header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "broken numpy header: it claims 4,294,967,295 bytes"),
        (b"\x89HDF\r\n\x1a\n and nothing", "cannot be opened as HDF5"),
        (b"IxPq" + struct.pack("<iqqqBi", 16, 0, 1 << 20, 1 << 20, 1, 1) + struct.pack("<QQQQ", 16, 4, 6, 1 << 60), "damaged"),
        (b"IxPq" + struct.pack("<iqqqBi", 16, 0, 1 << 20, 1 << 20, 1, 1) + b"\x10", "is truncated"),
        (b"IxRq" + struct.pack("<iqqqBi", 16, 0, 1 << 20, 1 << 20, 1, 1) + struct.pack("<QQQ", 1, 1 << 50, 1 << 50), "damaged"),
    ],
)  # fmt: skip
def test_other_kinds_of_files(tmp_path: Path, data: bytes, sentence: str) -> None:
    refused(written(tmp_path / "x.bin", data), sentence)


@pytest.mark.parametrize("name", ["km.joblib", "km.pkl", "km.pickle"])
@pytest.mark.parametrize(
    "squeeze",
    [*(lambda data, n=n: zlib.compress(data, n) for n in (1, 3, 6, 9)), gzip.compress, bz2.compress, lzma.compress],
)
def test_pickles_are_named_however_they_are_squeezed(
    tmp_path: Path, name: str, squeeze: Callable[[bytes], bytes]
) -> None:
    refused(written(tmp_path / name, squeeze(pickle.dumps([1, 2]))), "is a Python pickle")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        refused(written(tmp_path / name, pickle.dumps({"a": 1.5}, protocol)), "is a Python pickle")


def test_missing_files_and_devices(tmp_path: Path) -> None:
    refused(tmp_path / "no.pt", "does not exist")
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "not a regular file")


# safetensors


def safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(path, struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "sentence"),
    [
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "b overlaps the tensor before it"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 12, 16)}, 16, "b leaves a hole"),
        ({"a": entry("F32", [2], 0, 8)}, 4, "is truncated: 4 of 8 bytes"),
        ({"a": entry("F32", [2], 0, 8)}, 12, "4 bytes follow the last tensor"),
        ({"a": entry("F32", [1 << 40, 1 << 40], 0, 8)}, 8, "takes 4,835,703,278,458,516,698,824,704 bytes"),
        ({"a": entry("F32", [-1], 0, 8)}, 8, "shape must be a list of counts"),
        ({"a": entry("F32", [True], 0, 4)}, 4, "shape must be a list of counts"),
        ({"a": entry("F32", [2], 8, 0)}, 8, "its offsets give -8"),
        ({"a": entry("X99", [2], 0, 8)}, 8, "dtype X99 is no type that toc reads"),
        ({"a": {"shape": [2]}}, 8, "dtype, shape and data_offsets are missing"),
        ({"a": [1]}, 0, "are missing"),
        ([1], 0, "no table of tensors"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__ must map text to text"),
        (b'{"a": {}, "a": {}}', 0, "a name stands twice"),
        (b"{" * 5000, 0, "broken safetensors header"),
        (b"{not json", 0, "broken safetensors header"),
        ({"\x1b[31ma": entry("F32", [2], 0, 4)}, 4, r"\\x1b\[31ma"),
    ],
)
def test_safetensors_headers_that_do_not_add_up(tmp_path: Path, header: Any, data: int, sentence: str) -> None:
    refused(safetensors(tmp_path / "x.safetensors", header, bytes(data)), sentence)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 200_000_000])
def test_a_huge_safetensors_header_length_is_not_allocated(tmp_path: Path, length: int) -> None:
    path = safetensors(tmp_path / "x.safetensors", {}, length=length)
    tracemalloc.start()
    refused(path, "its header claims")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    refused(safetensors(tmp_path / "y.safetensors", {}, length=5000), "cannot hold its header")


# index of shards


@pytest.mark.parametrize(
    ("shard", "sentence"),
    [
        ("../secret.safetensors", "outside of its folder"),
        ("/etc/passwd", "outside of its folder"),
        ("..\\secret.safetensors", "outside of its folder"),
        ("C:\\secret.safetensors", "outside of its folder"),
        ("sub/../../secret.safetensors", "outside of its folder"),
        ("link.safetensors", "links outside of its folder"),
        ("absent.safetensors", "which is not there"),
        ("a\x00b", "no file name"),
        (7, "no file name"),
        ("inside.safetensors", "places w in inside.safetensors, which lacks it"),
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, shard: Any, sentence: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    save_file({"other": torch.ones(2)}, folder / "inside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(folder, sentence)
    refused(folder / "model.safetensors.index.json", sentence)


def test_an_index_without_a_map_and_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(tmp_path, "has no weight_map")
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json is not valid JSON")
    (tmp_path / "config.json").write_text("[" * 100_000)
    refused(tmp_path, "config.json is not valid JSON")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/etc/hostname")
    refused(tmp_path, "config.json links outside of its folder")


def test_companions_that_link_out_of_the_folder_stay_behind(tmp_path: Path) -> None:
    from toc_cli.io.checkpoint import Edits

    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "README.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "tokenizer.json").write_text("{}")
    open_checkpoint(folder).write(tmp_path / "out", Edits())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "tokenizer.json"}


def test_a_hugging_face_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file({"w": torch.ones(2)}, blobs / "0123")
    (snapshot / "part.safetensors").symlink_to(blobs / "0123")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "part.safetensors"}}))
    assert list(open_checkpoint(snapshot).infos) == ["w"]


# pickles


class Payload:
    """Asks the reader to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_never_runs(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2), "p": Payload(mark)}, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert mark.is_dir(), "the control must run it"
    mark.rmdir()
    refused(path, r"asks to run (posix|os|nt)\.mkdir when it is loaded; nothing of it was run")
    assert not mark.exists()


def globals_file(path: Path, module: str, name: str, arguments: bytes) -> Path:
    """A torch zip whose pickle is {'w': tensor-less, 'p': module.name(*arguments)}, in text opcodes."""
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    main = next(name for name in members if name.endswith("/data.pkl"))
    call = f"c{module}\n{name}\n".encode() + b"(" + arguments + b"tR"
    members[main] = members[main].rstrip(b".") + b"(X\x01\x00\x00\x00p" + call + b"u."
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "__import__"),
        ("os", "system"),
        ("subprocess", "Popen"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("pickle", "loads"),
        ("ctypes.util", "find_library"),
    ],
)
def test_files_that_ask_for_the_interpreter_or_the_system_are_refused(tmp_path: Path, module: str, name: str) -> None:
    refused(globals_file(tmp_path / "x.pt", module, name, b"X\x02\x00\x00\x00ls"), rf"asks to run {module}\.{name}")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.hub", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.jit", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("toc_cli.io.atomic", "sha256"),
        ("pathlib", "PosixPath"),
    ],
)
def test_other_globals_are_stand_ins_that_do_nothing(tmp_path: Path, module: str, name: str) -> None:
    checkpoint = open_checkpoint(globals_file(tmp_path / "x.pt", module, name, b"X\x02\x00\x00\x00ls"))
    assert f"{module}.{name}" in str(checkpoint.read_only)
    assert torch.equal(checkpoint.get("w"), torch.ones(2))


class Slots:
    __slots__ = ("a",)


class Table(dict):  # type: ignore[type-arg]
    pass


class Callback:
    pass


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "thing",
    [
        argparse.Namespace(lr=0.1, dims=[1, 2]),
        np.float64(0.5),
        np.arange(3),
        pathlib.PurePosixPath("a/b"),
        collections.defaultdict(list, a=[1]),
        collections.Counter("abc"),
        {Callback: 1},
        {Callback(): 1},
        Table(a=1),
        functools.partial(int, base=2),
        {1, 2},
        torch.device("cpu"),
        torch.nn.Linear(2, 2),
        int,
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_harmless_foreign_objects_do_not_hide_the_tensors(tmp_path: Path, thing: Any, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    book = torch.randn(4, 3)
    torch.save(
        {"model": {"w": book, "p": torch.nn.Parameter(book)}, "thing": thing},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.get("model/w"), book)
    assert torch.equal(checkpoint.get("model/p"), book)


def test_tensors_inside_a_foreign_dictionary_are_listed(tmp_path: Path) -> None:
    torch.save({"x": argparse.Namespace(), "t": Table(w=torch.ones(2))}, tmp_path / "x.pt")
    assert list(open_checkpoint(tmp_path / "x.pt").infos) == ["t/w"]


def test_a_file_cannot_reach_into_torch_through_its_state(tmp_path: Path) -> None:
    """BUILD on an allowed function would set its attributes for the whole process."""
    before = dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__
    body = b"(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__NstbcPath\nNot\n0."
    path = tmp_path / "x.pt"
    torch.save({}, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(InputError):
        open_checkpoint(path)
    assert (dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__) == before


def repack(path: Path, **options: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)


def test_a_compressed_torch_file_is_refused_as_no_torch_would_write_it(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "x.pt")
    repack(tmp_path / "x.pt", compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    refused(tmp_path / "x.pt", "compressed entries")


def test_a_tensor_of_one_number_and_a_huge_shape_is_listed_and_not_allocated(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(1 << 40), "y": torch.ones(1).expand(1000)}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert checkpoint.infos["x"].shape == (1 << 40,)
    assert checkpoint.get("y").sum() == 1000
    with pytest.raises(InputError, match="more than the whole file holds"):
        checkpoint.get("x")


def test_a_tree_of_shared_lists_does_not_explode(tmp_path: Path) -> None:
    tree: Any = [torch.ones(1)]
    for _ in range(28):
        tree = [tree, tree]
    torch.save({"x": tree}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "nests its dictionaries too deep, or one inside of itself")


def test_a_torch_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"x": torch.ones(1)}
    tree["self"] = tree
    torch.save(tree, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "nests its dictionaries too deep, or one inside of itself")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_cut_anywhere_is_damaged(tmp_path: Path, zipped: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(100), "n": argparse.Namespace(a=1)}, buffer, _use_new_zipfile_serialization=zipped)
    data = buffer.getvalue()
    for cut in range(1, len(data) - 1, max(len(data) // 40, 1)):
        with pytest.raises(InputError):
            open_checkpoint(written(tmp_path / "x.pt", data[:cut]))


def test_a_torch_file_with_broken_bytes_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever a flipped byte does, it ends in tensors or in InputError."""
    generator = np.random.default_rng(0)
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"x": torch.ones(4), "n": argparse.Namespace(a=1)}, buffer, _use_new_zipfile_serialization=zipped)
        for _ in range(150):
            data = bytearray(buffer.getvalue())
            data[generator.integers(len(data))] = generator.integers(256)
            with suppress(InputError):
                read_all(written(tmp_path / "x.pt", bytes(data)))


@pytest.mark.parametrize(
    "name",
    [
        "containers/bfloat16.safetensors",
        "containers/codebook.h5",
        "containers/codebook.npy",
        "containers/codebooks.npz",
        "containers/namespace_in_ckpt.pt",
        "faiss/index_pq.faiss",
        "faiss/index_rq.faiss",
    ],
)
def test_any_file_with_broken_bytes_is_read_or_refused(fixtures_dir: Path, tmp_path: Path, name: str) -> None:
    generator = np.random.default_rng(1)
    original = (fixtures_dir / name).read_bytes()
    for _ in range(40):
        data = bytearray(original)
        for position in generator.integers(min(len(data), 3000), size=2):
            data[position] = generator.integers(256)
        with suppress(InputError):
            read_all(written(tmp_path / Path(name).name, bytes(data)))


def test_a_torch_file_named_safetensors_is_told_apart(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "Rename it to .pt")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "x.zip", "holds neither a torch checkpoint nor numpy arrays")


# numpy and HDF5


def test_a_zip_bomb_of_zeros_is_listed_and_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", bomb=np.zeros(1 << 27, np.uint8), small=np.zeros(1000))
    checkpoint = open_checkpoint(tmp_path / "x.npz")
    assert checkpoint.get("small").shape == (1000,)
    tracemalloc.start()
    with pytest.raises(InputError, match="refused as a zip bomb"):
        checkpoint.get("bomb")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def npy(shape: str, data: bytes = b"", descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (npy("(1000000000000, 1000)"), "is truncated: shape"),
        (npy("(-1, 4)", bytes(64)), "is truncated: shape|broken numpy header"),
        (npy("(2,)", bytes(4)), "is truncated: shape"),
        (npy("(2,)", bytes(64), "|O"), "array of Python objects|a Python pickle, is truncated or damaged"),
        (npy("(2,)", bytes(64), "<U4"), "which is no number"),
        (npy("(__import__('os').getcwd(),)"), "broken numpy header"),
        (npy("(2, 'unclosed"), "broken numpy header"),
    ],
)
def test_numpy_headers_that_do_not_add_up(tmp_path: Path, data: bytes, sentence: str) -> None:
    refused(written(tmp_path / "x.npy", data), sentence)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
        archive.writestr("y.npy", npy("(1,)", bytes(4)))
    if "no number" not in sentence:
        refused(tmp_path / "x.npz", sentence)


def test_hdf5_that_reads_other_files_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["x"] = np.ones((4, 2))
    (tmp_path / "raw").write_bytes(bytes(64))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["out"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file.create_group("a/b")["\x1b[31mout"] = h5py.ExternalLink("secret.h5", "/x")
    with h5py.File(tmp_path / "storage.h5", "w") as file:
        file.create_dataset("out", (4, 2), "f8", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4, 2), "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "x", (4, 2))
        file.create_virtual_dataset("out", layout)
    refused(tmp_path / "link.h5", "links out to another file; external links are refused")
    refused(tmp_path / "deep.h5", r"links a/b/\\x1b\[31mout to another file")
    refused(tmp_path / "storage.h5", "external storage is refused")
    refused(tmp_path / "virtual.h5", "virtual dataset over other files")


def test_hdf5_soft_links_are_no_second_datasets_and_cycles_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("a")
        group["book"] = np.ones((4, 2))
        group["again"] = file["a"]
        file["soft"] = h5py.SoftLink("/a/book")
        file["dangling"] = h5py.SoftLink("/nowhere")
    assert list(open_checkpoint(tmp_path / "x.h5").infos) == ["a/book"]


def test_an_hdf5_dataset_of_a_huge_shape_without_data_is_not_unpacked(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (1 << 40, 256), "f4", chunks=(1024, 256))
    refused(tmp_path / "x.h5", "refused as a zip bomb")


def test_faiss_indexes_agree_with_faiss(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed (extra test-libs)")
    x = np.random.default_rng(0).normal(size=(400, 16)).astype("float32")
    index = faiss.index_factory(16, "OPQ4_16,IVF4,PQ4x3np")
    index.train(x)
    index.add(x)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    checkpoint = open_checkpoint(tmp_path / "x.faiss")
    inner = faiss.downcast_index(index.index)
    rotation = faiss.downcast_VectorTransform(index.chain.at(0))
    assert np.array_equal(checkpoint.get("pq.centroids").numpy().ravel(), faiss.vector_to_array(inner.pq.centroids))
    assert np.array_equal(checkpoint.get("transform.0.A").numpy().ravel(), faiss.vector_to_array(rotation.A))
    coarse = faiss.downcast_index(inner.quantizer).reconstruct_n(0, 4)
    assert np.array_equal(checkpoint.get("coarse.xb").numpy(), coarse)
    assert checkpoint.values[("faiss", "by_residual")] is True
    residual = faiss.index_factory(16, "RQ2x4")
    residual.train(x)
    faiss.write_index(residual, str(tmp_path / "rq.faiss"))
    books = open_checkpoint(tmp_path / "rq.faiss").get("rq.codebooks")
    assert np.array_equal(books.numpy().ravel(), faiss.vector_to_array(residual.rq.codebooks))
    whole = (tmp_path / "x.faiss").read_bytes()
    for cut in range(40, 800, 40):
        with pytest.raises(InputError):
            open_checkpoint(written(tmp_path / "cut.faiss", whole[:cut]))


def deflated_zeros(count: int) -> bytes:
    """A deflate stream of `count` zero bytes, made in pieces."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(1 << 24)) for _ in range(count >> 24)]
    return b"".join([*pieces, packer.flush()])


@pytest.mark.parametrize(("rows", "sentence"), [(128, "is damaged: a chunk of"), (16384, "refused as a bomb")])
def test_a_chunk_that_unpacks_to_more_than_it_holds(tmp_path: Path, rows: int, sentence: str) -> None:
    """Whatever the dataset declares: the library would unpack all of it."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        book = file.create_dataset("codebook", (rows, 16), "f4", chunks=(rows, 16), compression="gzip", shuffle=True)
        book.id.write_direct_chunk((0, 0), deflated_zeros(1 << 28))
    checkpoint = open_checkpoint(tmp_path / "x.h5")
    with pytest.raises(InputError, match=sentence):
        checkpoint.get("codebook")


def test_a_chunk_too_short_for_its_checksum_does_not_end_the_process(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        book = file.create_dataset("codebook", (64, 16), "f4", chunks=(64, 16), fletcher32=True)
        book.id.write_direct_chunk((0, 0), b"x")
    with pytest.raises(InputError, match="is damaged: a chunk of 4,096 bytes is stored in 1"):
        open_checkpoint(tmp_path / "x.h5").get("codebook")


def test_a_crash_or_a_hang_of_the_library_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    from toc_cli.io.checkpoint import probe

    with pytest.raises(InputError, match=r"the HDF5 library crashes on it \(signal 11\)"):
        probe.refuse_crash(tmp_path / "x.h5", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    monkeypatch.setattr(probe, "SECONDS", 1)
    with pytest.raises(InputError, match="does not end"):
        probe.refuse_crash(tmp_path / "x.h5", lambda: all(True for _ in iter(int, 1)))
    probe.refuse_crash(tmp_path / "x.h5", lambda: 1 / 0)


def test_attributes_in_an_unknown_encoding_do_not_hide_the_tensors(tmp_path: Path) -> None:
    from toc_cli.io.checkpoint import Edits

    with h5py.File(tmp_path / "x.h5", "w") as file:
        book = file.create_dataset("codebook", data=np.ones((4, 2), "f4"))
        text = h5py.h5t.C_S1.copy()
        text.set_size(4)
        for place in (file, book):
            scalar = h5py.h5s.create(h5py.h5s.SCALAR)
            h5py.h5a.create(place.id, b"na\xffme", text, scalar).write(np.array(b"a\xffb"))
    checkpoint = open_checkpoint(tmp_path / "x.h5")
    checkpoint.write(tmp_path / "y.h5", Edits({"codebook": torch.zeros(4, 2)}))
    with h5py.File(tmp_path / "y.h5") as copy:
        assert not copy["codebook"][()].any()
        assert h5py.h5a.open(copy["codebook"].id, index=0).name == b"na\xffme"
