"""GGUF, ONNX, Keras, Flax, torch.export, skops, NeMo, text: the numbers of the library that wrote them, or a sentence."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from conftest import shared_folder
from toc_cli.errors import InputError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.families import detect

ROWS = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)


def broken(data: bytes, count: int = 150) -> list[bytes]:
    """The file cut at many places, and with a byte changed in its first 2,000."""
    generator = np.random.default_rng(0)
    versions = [data[:cut] for cut in range(1, len(data), max(len(data) // 50, 1))]
    for _ in range(count):
        changed = bytearray(data)
        changed[generator.integers(min(len(data), 2000))] = generator.integers(256)
        versions.append(bytes(changed))
    return versions


def read_or_refused(path: Path, data: bytes) -> None:
    for version in broken(data):
        path.write_bytes(version)
        with suppress(InputError):
            checkpoint = open_checkpoint(path)
            for key in checkpoint.infos:
                checkpoint.get(key)


def test_gguf_plain_and_quantised(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "codec")
    writer.add_array("tokenizer.list", ["a", "bc", "d"])
    writer.add_uint32("codec.levels", 3)
    writer.add_tensor("plain", ROWS)
    writer.add_tensor("half", ROWS.astype(np.float16))
    kinds = [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q5_1]
    for kind in kinds:
        writer.add_tensor(kind.name, gguf.quants.quantize(ROWS, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    assert {key: (i.shape, i.stored) for key, i in checkpoint.infos.items()} == {
        "plain": ((64, 32), "float32"), "half": ((64, 32), "float16"), "Q8_0": ((64, 32), "Q8_0"),
        "Q4_0": ((64, 32), "Q4_0"), "Q5_1": ((64, 32), "Q5_1"),
    }  # fmt: skip
    assert checkpoint.values["codec.levels",] == 3
    assert np.array_equal(checkpoint.get("plain").numpy(), ROWS)
    for kind in kinds:
        expected = gguf.quants.dequantize(gguf.quants.quantize(ROWS, kind), kind)
        assert np.array_equal(checkpoint.get(kind.name).numpy(), expected)
    read_or_refused(path, path.read_bytes())


def test_block_sizes_are_those_of_the_gguf_library() -> None:
    gguf = pytest.importorskip("gguf")
    from toc_cli.io.checkpoint.gguf import BLOCKS

    theirs = {kind.value: (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {code: block for code, block in BLOCKS.items() if code != 9} == {c: theirs[c] for c in BLOCKS if c != 9}


def test_a_gguf_of_endless_counts_is_refused_at_once(tmp_path: Path) -> None:
    import struct

    path = tmp_path / "x.gguf"
    array = struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 1 << 60)
    for body in (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1 << 60), struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + array):
        path.write_bytes(body)
        with pytest.raises(InputError, match="truncated or damaged"):
            open_checkpoint(path)


def test_onnx_initialisers_and_the_gather_that_reads_them(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, tensors = onnx.helper, onnx.numpy_helper
    external = tensors.from_array(ROWS[:8], "outside")
    listed = helper.make_tensor("listed", onnx.TensorProto.FLOAT, (2, 3), [1.0, 2, 3, 4, 5, 6])
    inputs = [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, ["n", 32])]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["codebook", "i"], ["o"])], "g", inputs, outputs,
        [tensors.from_array(ROWS, "codebook"), tensors.from_array(ROWS.astype(np.float16), "half"), external, listed],
    )  # fmt: skip
    model = helper.make_model(graph)
    onnx.external_data_helper.set_external_data(model.graph.initializer[2], "weights.bin")
    onnx.save_model(model, tmp_path / "x.onnx")
    checkpoint = open_checkpoint(tmp_path / "x.onnx")
    expected = {t.name: tensors.to_array(t, str(tmp_path)) for t in onnx.load(tmp_path / "x.onnx").graph.initializer}
    assert checkpoint.infos.keys() == expected.keys()
    for key, array in expected.items():
        assert np.array_equal(checkpoint.get(key).numpy(), array)
    assert checkpoint.values["gathered",] == ["codebook"]
    assert checkpoint.files == (tmp_path / "x.onnx", tmp_path / "weights.bin")
    read_or_refused(tmp_path / "x.onnx", (tmp_path / "x.onnx").read_bytes())
    model.graph.initializer[2].external_data[0].value = "../secret"
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside of its folder"):
        open_checkpoint(tmp_path / "x.onnx")


def test_flax_msgpack(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")

    def array(x: np.ndarray) -> Any:
        """As flax.serialization packs an array."""
        return msgpack.ExtType(1, msgpack.packb((x.shape, x.dtype.name, x.tobytes("C")), use_bin_type=True))

    tree = {
        "params": {"vq": {"codebook": array(ROWS), "count": array(np.arange(64))}},
        "step": 7,
        "name": "x",
        "none": None,
    }
    data = msgpack.packb(tree, use_bin_type=True)
    (tmp_path / "checkpoint_7").write_bytes(data)
    checkpoint = open_checkpoint(tmp_path / "checkpoint_7")
    assert list(checkpoint.infos) == ["params/vq/codebook", "params/vq/count"]
    assert np.array_equal(checkpoint.get("params/vq/codebook").numpy(), ROWS)
    assert checkpoint.values["step",] == 7
    read_or_refused(tmp_path / "x.msgpack", data)


def test_flax_itself(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    (tmp_path / "x.msgpack").write_bytes(serialization.msgpack_serialize({"params": {"codebook": ROWS}}))
    assert np.array_equal(open_checkpoint(tmp_path / "x.msgpack").get("params/codebook").numpy(), ROWS)


def test_keras_archives(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["layers/vector_quantizer/vars/0"] = ROWS.T
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", buffer.getvalue())
    checkpoint = open_checkpoint(tmp_path / "x.keras")
    (book,) = detect(checkpoint)
    assert (book.num_codes, book.dim) == ((64,), 32)
    assert np.array_equal(book.parts(checkpoint).tables[0][0].numpy(), ROWS)
    checkpoint.close()
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 27))
    with pytest.raises(InputError, match="refused as a bomb"):
        open_checkpoint(tmp_path / "bomb.keras")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_nemo_archives(tmp_path: Path, mode: Any) -> None:
    torch.save({"vector_quantizer.codebooks": torch.from_numpy(ROWS)}, tmp_path / "model_weights.ckpt")
    with tarfile.open(tmp_path / "x.nemo", mode) as archive:
        archive.add(tmp_path / "model_weights.ckpt", "./model_weights.ckpt")
    checkpoint = open_checkpoint(tmp_path / "x.nemo")
    assert np.array_equal(checkpoint.get("vector_quantizer.codebooks").numpy(), ROWS)


class Lookup(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codebook = torch.nn.Embedding(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, self.codebook.weight).argmin(-1)


def test_torch_export(tmp_path: Path) -> None:
    model = Lookup()
    torch.export.save(torch.export.export(model, (torch.randn(4, 32),)), tmp_path / "x.pt2")
    checkpoint = open_checkpoint(tmp_path / "x.pt2")
    assert torch.equal(checkpoint.get("codebook.weight"), model.codebook.weight.detach())
    read_or_refused(tmp_path / "x.pt2", (tmp_path / "x.pt2").read_bytes())


def test_skops(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    from sklearn.cluster import KMeans
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = KMeans(8, n_init=1, random_state=0).fit(ROWS)
    skops.dump(model, tmp_path / "x.skops")
    checkpoint = open_checkpoint(tmp_path / "x.skops")
    (book,) = detect(checkpoint)
    assert np.array_equal(book.parts(checkpoint).tables[0][0].numpy(), model.cluster_centers_)
    skops.dump(make_pipeline(StandardScaler(), KMeans(4, n_init=1)).fit(ROWS), tmp_path / "pipe.skops")
    with pytest.raises(InputError, match=r"StandardScaler.*before its k-means"):
        open_checkpoint(tmp_path / "pipe.skops")


@pytest.mark.parametrize("delimiter", [" ", ",", "\t"])
def test_text_tables(tmp_path: Path, delimiter: str) -> None:
    np.savetxt(tmp_path / "x.txt", ROWS, delimiter=delimiter, header="codes")
    checkpoint = open_checkpoint(tmp_path / "x.txt")
    assert np.allclose(checkpoint.get("").numpy(), ROWS)
    assert detect(checkpoint)[0].num_codes == (64,)


def test_faiss_coarse_levels_behind_a_graph(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(32, "IVF16_HNSW,PQ8x4")
    index.train(np.random.default_rng(1).normal(size=(700, 32)).astype(np.float32))
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    checkpoint = open_checkpoint(tmp_path / "x.faiss")
    centroids = index.quantizer.reconstruct_n(0, 16) if hasattr(index.quantizer, "reconstruct_n") else None
    assert np.array_equal(checkpoint.get("coarse.xb").numpy(), centroids)
    books = {book.family: book for book in detect(checkpoint)}
    expected = faiss.vector_to_array(index.pq.centroids).reshape(8, 16, 4)
    table = books["faiss product quantiser"].parts(checkpoint).tables[0]
    assert np.array_equal(table.numpy(), expected)


# What stays unread says what it is, and the way out.


def folder(path: Path, *names: str) -> Path:
    for name in names:
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ((".metadata", "__0_0.distcp"), "distributed checkpoint of torch.*dcp_to_torch"),
        (("latest", "global_step10/mp_rank_00_model_states.pt"), "DeepSpeed.*zero_to_fp32"),
        (("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"), "DeepSpeed.*zero_to_fp32"),
        (("saved_model.pb", "variables/variables.index"), "SavedModel.*tf.saved_model.load"),
        (("manifest.ocdbt", "_METADATA"), "orbax.*PyTreeCheckpointer"),
    ],
)
def test_folders_of_other_libraries(tmp_path: Path, names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_checkpoint(folder(tmp_path / "ckpt", *names))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite.*np.savez"),
        ("m.pdparams", pickle.dumps({"a": 1}), "Paddle.*paddle.load"),
        ("m.data-00000-of-00001", b"\1\2\3\4", "TensorFlow checkpoint.*list_variables"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", b"x", "DeepSpeed.*zero_to_fp32"),
        ("x.npy.gz", b"\x1f\x8b\x08\0\0\0\0\0", "compressed.*gunzip"),
    ],
)
def test_files_of_other_libraries(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        open_checkpoint(tmp_path / name)


CASES = {
    "hubert_km_L9_km64.bin": (64, 32), "mb.joblib.gz": (64, 32), "sovits_kmeans_10000.pt": (64, 32),
    "keras3_DK.weights.h5": (128, 16), "keras_legacy_DK.h5": (128, 16), "keras_only.h5": (32, 64),
    "keras_vqvae.keras": (64, 32), "haiku_DK.npz": (128, 16), "ds_zero": "zero_to_fp32", "s3_v2_fsq.pt": "scalar quantiser",
    "dict_object.npy": r"Python objects.*\*\*array.item", "plain_vae.pt": "no codebook",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_containers_of_the_cases(name: str) -> None:
    cases = shared_folder("TOC_CASES", "cases")
    if cases is None:
        pytest.skip("cases are not here: set TOC_CASES to their folder")
    path, expected = cases / "files" / name, CASES[name]
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            detect(open_checkpoint(path))
    else:
        assert {(book.num_codes[0], book.dim) for book in detect(open_checkpoint(path))} == {expected}
