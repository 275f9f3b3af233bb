"""More readers of `tests/torture.py`: the other containers of checkpoints and of features, tokens, configs, runs and training data.

A reader whose container nothing here can write (`usable`) is left out.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, DIM = 12, 4


def codes(rows: int = ROWS, dim: int = DIM) -> Any:
    import numpy as np

    return np.random.default_rng(5).normal(size=(rows, dim)).astype(np.float32)


def clips() -> dict[str, Any]:
    return {f"utt{n}": codes(20, 6) for n in range(3)}


def usable(reader: str) -> bool:
    """Whether the libraries that write a reader's file are installed."""
    needs = {
        "gguf": "gguf", "onnx": "onnx", "msgpack": "msgpack", "skops": "skops", "joblib": "sklearn", "faiss": "faiss",
        "faiss-flat": "faiss", "faiss-ivf": "faiss", "ark": "kaldiio", "scp": "kaldiio", "parquet": "pyarrow", "arrow": "pyarrow",
    }  # fmt: skip
    return reader not in needs or importlib.util.find_spec(needs[reader]) is not None


# Checkpoints


def gguf_file(folder: Path) -> Path:
    import gguf

    writer = gguf.GGUFWriter(folder / "m.gguf", "vq")
    writer.add_tensor("quantize.embedding.weight", codes())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


def onnx_file(folder: Path) -> Path:
    import onnx

    helper, tensors = onnx.helper, onnx.numpy_helper
    graph = helper.make_graph(
        [helper.make_node("Gather", ["codebook", "i"], ["o"])], "g",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, ["n", DIM])], [tensors.from_array(codes(), "codebook")],
    )  # fmt: skip
    onnx.save_model(helper.make_model(graph), folder / "m.onnx")
    return folder / "m.onnx"


def msgpack_file(folder: Path) -> Path:
    import msgpack

    x = codes()
    array = msgpack.ExtType(1, msgpack.packb((x.shape, x.dtype.name, x.tobytes()), use_bin_type=True))
    (folder / "m.msgpack").write_bytes(
        msgpack.packb({"params": {"vq": {"codebook": array}}, "step": 7}, use_bin_type=True)
    )
    return folder / "m.msgpack"


def keras_file(folder: Path) -> Path:
    import h5py

    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        file["layers/vector_quantizer/vars/0"] = codes().T
    with zipfile.ZipFile(folder / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", held.getvalue())
    return folder / "m.keras"


def keras_weights(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "m.weights.h5", "w") as file:
        file["layers/vector_quantizer/vars/0"] = codes().T
    return folder / "m.weights.h5"


def nemo_file(folder: Path) -> Path:
    import torch

    torch.save({"vector_quantizer.codebooks": torch.from_numpy(codes())}, folder / "model_weights.ckpt")
    with tarfile.open(folder / "m.nemo", "w") as archive:
        archive.add(folder / "model_weights.ckpt", "./model_weights.ckpt")
    return folder / "m.nemo"


def skops_file(folder: Path) -> Path:
    import skops.io
    from sklearn.cluster import KMeans

    skops.io.dump(KMeans(4, n_init=1, random_state=0).fit(codes(60)), folder / "m.skops")
    return folder / "m.skops"


def joblib_file(folder: Path) -> Path:
    import joblib
    from sklearn.cluster import MiniBatchKMeans

    joblib.dump(MiniBatchKMeans(4, n_init=1, random_state=0).fit(codes(60)), folder / "m.joblib", compress=("gzip", 3))
    return folder / "m.joblib"


def text_file(folder: Path) -> Path:
    import numpy as np

    np.savetxt(folder / "m.txt", codes())
    return folder / "m.txt"


def export_file(folder: Path) -> Path:
    """As `torch.export.save` lays out its zip; exporting takes seconds in each child."""
    x = codes()
    weights = {"config": {"codebook.weight": {"path_name": "weight_0", "is_param": True, "use_pickle": False,
        "tensor_meta": {"dtype": 7, "sizes": [{"as_int": ROWS}, {"as_int": DIM}], "requires_grad": False,
        "device": {"type": "cpu", "index": None}, "strides": [{"as_int": DIM}, {"as_int": 1}],
        "storage_offset": {"as_int": 0}, "layout": 7}}}}  # fmt: skip
    with zipfile.ZipFile(folder / "m.pt2", "w") as archive:
        for name, data in (
            ("archive_format", b"pt2"), ("version", b"0"), ("byteorder", b"little"), (".data/version", b"3"),
            ("data/weights/model_weights_config.json", json.dumps(weights).encode()), ("data/weights/weight_0", x.tobytes()),
            ("models/model.json", b"{}"),
        ):  # fmt: skip
            archive.writestr(f"m/{name}", data)
    return folder / "m.pt2"


def faiss_kind(name: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        import faiss

        index = faiss.index_factory(8, name)
        x = codes(400, 8)
        index.train(x)
        if name == "Flat":
            index.add(x[:20])
        faiss.write_index(index, str(folder / "m.faiss"))
        return folder / "m.faiss"

    return made


# Features


def ark_file(folder: Path) -> Path:
    import kaldiio

    kaldiio.save_ark(str(folder / "f.ark"), clips())
    return folder / "f.ark"


def scp_file(folder: Path) -> Path:
    import kaldiio

    kaldiio.save_ark(str(folder / "f.ark"), clips(), scp=str(folder / "f.scp"))
    text = (folder / "f.scp").read_text().replace(f"{folder}/", "")
    (folder / "f.scp").write_text(text)
    return folder / "f.scp"


def parquet_file(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"feat": list(codes(40, 6)), "label": list(range(40))}), folder / "f.parquet", row_group_size=10
    )
    return folder / "f.parquet"


def arrow_file(folder: Path) -> Path:
    import pyarrow
    from pyarrow import feather

    feather.write_feather(pyarrow.table({"feat": list(codes(40, 6))}), str(folder / "f.feather"), chunksize=10)
    return folder / "f.feather"


def tar_file(folder: Path) -> Path:
    import numpy as np

    with tarfile.open(folder / "f.tar", "w") as archive:
        for name, x in clips().items():
            held = io.BytesIO()
            np.save(held, x)
            for member, data in ((f"{name}.feat.npy", held.getvalue()), (f"{name}.cls", b"1")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder / "f.tar"


def mat_file(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "f.mat", "w", userblock_size=512) as file:
        file.create_dataset("feat", data=codes(40, 6).T).attrs["MATLAB_class"] = b"single"
    with open(folder / "f.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + b"\0" * 8 + b"\0\2IM")
    return folder / "f.mat"


def features_npy(folder: Path) -> Path:
    import numpy as np

    np.save(folder / "f.npy", codes(40, 6))
    return folder / "f.npy"


def features_torch(folder: Path) -> Path:
    import torch

    torch.save({name: torch.from_numpy(x) for name, x in clips().items()}, folder / "f.pt")
    return folder / "f.pt"


def features_safetensors(folder: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"audio": codes(40, 6)}, folder / "f.safetensors")
    return folder / "f.safetensors"


def list_file(folder: Path) -> Path:
    features_npy(folder)
    (folder / "list.txt").write_text("f.npy\naudio=f.npy\n# a remark\n")
    return folder / "list.txt"


def tokens_file(folder: Path) -> Path:
    import h5py
    import numpy as np

    with h5py.File(folder / "t.h5", "w") as file:
        file["x"] = np.arange(40).reshape(40, 1) % 5
        file["x"].attrs["toc.codebook"] = "0" * 64
    return folder / "t.h5"


def config_toml(folder: Path) -> Path:
    (folder / "toc.toml").write_text(
        '[tool.toc.optimize]\nkeep = 0.5\ncriterion = "pca"\nemit = ["masked"]\nlean = true\n'
    )
    return folder / "toc.toml"


def training_data(folder: Path) -> Path:
    import h5py
    import numpy as np

    rng = np.random.default_rng(7)
    with h5py.File(folder / "d.h5", "w") as file:
        for split, count in (("train", 6), ("val", 4)):
            for name, shape in (("video", (4, 2, 2, 6)), ("audio", (4, 5)), ("text", (3, 4))):
                data = rng.normal(size=(count, *shape)).astype(np.float32)
                file.create_dataset(f"{split}/{name}", data=data, chunks=(2, *shape), compression="gzip")
            file[f"{split}/audio_length"] = rng.integers(1, 5, count)
            file[f"{split}/label_clip"] = rng.integers(0, 3, count)
    return folder / "d.h5"


def run_settings(folder: Path) -> Path:
    """The settings of a run folder."""
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("[model]\nwidth = 8\n[model.codebook]\nsize = 6\n[train]\nepochs = 3\n")
    return folder / "run" / "config.toml"


def run_model(folder: Path) -> Path:
    """The model of a run."""
    import torch

    from toc_cli.fcid.data import open_split
    from toc_cli.fcid.model import build_model
    from toc_cli.fcid.run_folder import RunFolder
    from toc_cli.fcid.train_config import run_config

    torch.manual_seed(0)
    config = run_config({"model": {"width": 8, "heads": 2, "codebook": {"size": 6}}})
    run = RunFolder(folder / "run")
    run.create(config.table())
    specs = open_split(training_data(folder), "train", config.model.modalities).specs
    run.write_model(build_model(config.model, specs), config.table())
    return run.model


# How they are read


def inspected(path: Path) -> object:
    from toc_cli.pipeline import inspect_checkpoint

    return inspect_checkpoint(path, numbers=True)


def streamed(path: Path) -> object:
    from toc_cli.io.features import open_features

    found = open_features(path if path.suffix != ".txt" else f"@{path}", max_memory=1 << 26)
    for dataset in found.select({6}):
        for _ in found.blocks(dataset.name):
            pass
    return [labels.read() for labels in found.labels.values()]


def tokens_read(path: Path) -> object:
    from toc_cli.io.tokens import TokenFile

    found = TokenFile(path)
    try:
        return [sum(len(block) for _, _, block in each.blocks((5,), 1, 1000)) for each in found.datasets]
    finally:
        found.close()


def defaults_read(path: Path) -> object:
    from toc_cli.commands.places import place
    from toc_cli.io.settings import read_toml

    place(str(path))
    return read_toml(path)


def split_read(path: Path) -> object:
    from toc_cli.fcid.data import open_split

    data = open_split(path, "train", ("video", "audio", "text"))
    return [data.label(name) for name in data.label_names], [len(batch) for batch in data.batches(2)]


def run_read(path: Path) -> object:
    from toc_cli.fcid.run_folder import RunFolder
    from toc_cli.fcid.train_config import run_config

    return run_config(RunFolder(path.parent).settings())


def model_read(path: Path) -> object:
    from toc_cli.fcid.run_folder import load_model

    return load_model(path)


MORE: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "gguf": (gguf_file, inspected),
    "onnx": (onnx_file, inspected),
    "msgpack": (msgpack_file, inspected),
    "keras": (keras_file, inspected),
    "keras-weights": (keras_weights, inspected),
    "nemo": (nemo_file, inspected),
    "skops": (skops_file, inspected),
    "joblib": (joblib_file, inspected),
    "text": (text_file, inspected),
    "pt2": (export_file, inspected),
    "faiss-flat": (faiss_kind("Flat"), inspected),
    "faiss-ivf": (faiss_kind("IVF4,PQ4x3"), inspected),
    "features-npy": (features_npy, streamed),
    "features-torch": (features_torch, streamed),
    "features-safetensors": (features_safetensors, streamed),
    "ark": (ark_file, streamed),
    "scp": (scp_file, streamed),
    "parquet": (parquet_file, streamed),
    "arrow": (arrow_file, streamed),
    "tar": (tar_file, streamed),
    "matlab": (mat_file, streamed),
    "list": (list_file, streamed),
    "settings": (config_toml, defaults_read),
    "tokens": (tokens_file, tokens_read),
    "training-data": (training_data, split_read),
    "run": (run_settings, run_read),
    "run-model": (run_model, model_read),
}
