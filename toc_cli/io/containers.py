"""The table of containers: how each is recognised, which suffixes it has, who reads it, what it can hold.

A reader is one file and one row here. Rows are asked in order and the first that recognises a file has it: by its first
bytes or the names inside of it, by its own name only where the format has no mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.head import Head
from toc_cli.io.inflate import compression, first_bytes

if TYPE_CHECKING:
    from toc_cli.io.checkpoint.base import Checkpoint

LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number that opens a torch file of before 1.6."""
FAISS_FILLER = (1 << 20).to_bytes(8, "little")
"""A constant in the header of every faiss index."""


@dataclass(frozen=True)
class Container:
    """One row of the table."""

    name: str
    """What messages call it."""
    recognise: Callable[[Head], bool]
    suffixes: tuple[str, ...] = ()
    """Usual endings of its files; a folder's weights are found by those that hold checkpoints."""
    checkpoint: str = ""
    """`module:Reader`, called with the path, for a `Checkpoint`; "" where it holds none that toc reads."""
    features: str = ""
    """`module:function`, called with the path, for the arrays by key; "" where it holds no features."""
    shard: bool = False
    """Whether an index of shards may name it."""
    unread: tuple[str, str] = ("", "")
    """For what toc does not read: what it is (after the file's name), and what its owner can do."""
    no_features: tuple[str, str] = ("", "")
    """The same where it is given as features, and more can be said than that it holds none."""

    def open_checkpoint(self, path: Path) -> Checkpoint:
        """The checkpoint in a file of this kind. InputError where toc does not read it."""
        if not self.checkpoint:
            raise self.refusal(path)
        opened: Checkpoint = _named(self.checkpoint)(path)
        return opened

    def open_features(self, path: Path) -> dict[str, Any]:
        """Every number array of a file of this kind, by key. InputError where it holds no features."""
        if not self.features:
            if self.no_features[0] or self.unread[0]:
                what, hint = self.no_features if self.no_features[0] else self.unread
                raise InputError(f"{Head(path).shown} {what}.", hint)
            endings = ", ".join(dict.fromkeys(row.suffixes[0] for row in CONTAINERS if row.features and row.suffixes))
            raise InputError(f"{Head(path).shown} is a {self.name} file, not features.", f"Features are in {endings}.")
        sources: dict[str, Any] = _named(self.features)(path)
        return sources

    def refusal(self, path: Path) -> InputError:
        """The sentence for a file of a kind that toc does not read."""
        what, hint = self.unread
        return InputError(f"{Head(path).shown} {what}.", hint)


def _named(reader: str) -> Callable[[Path], Any]:
    module, _, name = reader.partition(":")
    found: Callable[[Path], Any] = getattr(import_module(module), name)
    return found


def _member(head: Head, pattern: str) -> bool:
    return head.is_zip and any(re.fullmatch(pattern, name) for name in head.entries)


def _deepspeed(head: Head) -> bool:
    """A folder of shards, one above it (`latest` names it), or one shard by the name that DeepSpeed gives it."""
    if not head.is_folder:
        return bool(re.fullmatch(r"(?:bf16_)?zero_pp_rank_\d+_mp_rank_\d+_(?:optim|model)_states\.pt", head.name))
    shards = any(re.fullmatch(r".*_(?:optim|model)_states\.pt", name) for name in head.entries)
    return shards or ("latest" in head.entries and any(name.startswith("global_step") for name in head.entries))


def is_torch(head: Head) -> bool:
    """Whether a file is one of torch.save."""
    return _member(head, r".*/data\.pkl") or head.start.startswith(LEGACY_TORCH)


def _is_table(start: bytes) -> bool:
    """Whether the first lines of a file are rows of numbers of one length."""
    lines = [line.partition(b"#")[0].replace(b",", b" ").split() for line in start.splitlines()[:8]]
    rows = [line for line in lines if line]
    if len(rows) > 1 and not start.endswith((b"\n", b"\r")):
        rows = rows[:-1]  # cut off
    try:
        return (
            bool(rows) and len(rows[0]) > 1 and all(len(row) == len(rows[0]) and list(map(float, row)) for row in rows)
        )
    except ValueError:
        return False


def _is_pickle(head: Head) -> bool:
    """Protocols 0 and 1 have no first byte of their own: they are told by the name."""
    first = first_bytes(head.path, head.start)
    if first[:1] == b"\x80" and first[1:2] <= b"\x05":
        return True
    return bool({*head.path.suffixes} & {".joblib", ".pkl", ".pickle"})


CHECKPOINT = "toc_cli.io.checkpoint."
FEATURES = "toc_cli.io.features."

CONTAINERS: tuple[Container, ...] = (
    Container(
        "hub cache",
        lambda head: head.is_folder and {"snapshots", "refs"} <= head.entries,
        checkpoint=CHECKPOINT + "folder:cached_model",
    ),
    Container(
        "torch.distributed",
        lambda head: (
            head.is_folder and ".metadata" in head.entries and any(n.endswith(".distcp") for n in head.entries)
        ),
        unread=(
            "is a distributed checkpoint of torch (DCP), whose index is a pickle",
            "Where you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt",
        ),
    ),
    Container(
        "DeepSpeed",
        lambda head: _deepspeed(head),
        unread=(
            "is a DeepSpeed checkpoint, whose weights are cut over its ranks",
            "Join them with the script that DeepSpeed leaves beside it: python zero_to_fp32.py FOLDER weights",
        ),
    ),
    Container(
        "TensorFlow SavedModel",
        lambda head: head.is_folder and bool({"saved_model.pb", "saved_model.pbtxt"} & head.entries),
        unread=(
            "is a TensorFlow SavedModel, a program with its weights",
            "Export them: np.savez('weights.npz', **{v.name: v.numpy() for v in tf.saved_model.load(path).variables})",
        ),
    ),
    Container(
        "orbax",
        lambda head: (
            head.is_folder and bool({"manifest.ocdbt", "_CHECKPOINT_METADATA", "_METADATA", "_sharding"} & head.entries)
        ),
        unread=(
            "is an orbax checkpoint (JAX)",
            "Export it: np.savez('weights.npz', **flax.traverse_util.flatten_dict("
            "orbax.checkpoint.PyTreeCheckpointer().restore(path), sep='/'))",
        ),
    ),
    Container(
        "folder",
        lambda head: head.is_folder,
        checkpoint=CHECKPOINT + "folder:Folder",
    ),
    Container(
        "index",
        lambda head: head.name.endswith(".index.json"),
        (".index.json",),
        checkpoint=CHECKPOINT + "sharded:Sharded",
    ),
    Container(
        "TorchScript",
        lambda head: _member(head, r".*/constants\.pkl|.*/code/.*"),
        unread=(
            "is a TorchScript archive: it holds a program, and is not loaded",
            "Export its tensors: torch.save(torch.jit.load(path).state_dict(), 'weights.pt').",
        ),
    ),
    Container(
        "pt2",
        lambda head: _member(head, r"(?:.*/)?data/weights/model_weights_config\.json"),
        (".pt2",),
        checkpoint=CHECKPOINT + "exported:ExportedFile",
    ),
    Container(
        "pt2 of another version",
        lambda head: _member(head, r"(?:.*/)?(?:archive_format|serialized_exported_program\.json|models/model\.json)"),
        unread=(
            "is a program of torch.export in a layout that toc does not read",
            "Export its tensors: torch.save(torch.export.load(path).state_dict, 'weights.pt')",
        ),
    ),
    Container(
        "torch",
        is_torch,
        (".pt", ".pth", ".ckpt", ".bin", ".th"),
        checkpoint=CHECKPOINT + "torch_file:TorchFile",
        features=FEATURES + "torch_tensors:torch_sources",
        shard=True,
    ),
    Container(
        "npz",
        lambda head: bool(head.members) and all(name.endswith(".npy") for name in head.entries),
        (".npz",),
        checkpoint=CHECKPOINT + "arrays:NpzFile",
        features=FEATURES + "raw:npz_sources",
    ),
    Container(
        "keras",
        lambda head: "model.weights.h5" in head.entries and head.is_zip,
        (".keras",),
        checkpoint=CHECKPOINT + "packed:KerasFile",
    ),
    Container(
        "skops",
        lambda head: head.is_zip and "schema.json" in head.entries,
        (".skops",),
        checkpoint=CHECKPOINT + "exported:SkopsFile",
    ),
    Container(
        "zip with arrays",
        lambda head: _member(head, r".*\.npy"),
        unread=("is a zip file with more than arrays in it", "Save the arrays with np.savez."),
    ),
    Container(
        "zip",
        lambda head: head.is_zip and head.members is not None,
        unread=("is a zip file that holds neither a torch checkpoint nor numpy arrays", ""),
    ),
    Container(
        "npy of objects",
        lambda head: head.start.startswith(b"\x93NUMPY") and bool(re.search(rb"'descr': *'\|O'", head.start[:256])),
        unread=(
            "is an array of Python objects, which only a pickle can hold; it is not loaded",
            "Save plain numbers: np.savez(path, **array.item()) for a dictionary of arrays, "
            "np.save(path, np.concatenate(list(array))) for clips.",
        ),
    ),
    Container(
        "npy",
        lambda head: head.start.startswith(b"\x93NUMPY"),
        (".npy",),
        checkpoint=CHECKPOINT + "arrays:NpyFile",
        features=FEATURES + "raw:npy_sources",
    ),
    Container(
        "h5",
        lambda head: head.start.startswith(b"\x89HDF\r\n\x1a\n"),
        (".h5", ".hdf5"),
        checkpoint=CHECKPOINT + "hdf5:Hdf5File",
        features=FEATURES + "hdf5:hdf5_sources",
    ),
    Container(
        "faiss",
        lambda head: (head.start[:1] == b"I" and head.start[16:24] == FAISS_FILLER) or head.path.suffix == ".pq",
        (".faiss", ".index", ".pq"),
        checkpoint=CHECKPOINT + "faiss:FaissIndex",
    ),
    Container(
        "gguf",
        lambda head: head.start.startswith(b"GGUF"),
        (".gguf",),
        checkpoint=CHECKPOINT + "gguf:GgufFile",
    ),
    Container(
        "tflite",
        lambda head: head.start[4:8] == b"TFL3",
        unread=(
            "is a TensorFlow Lite model",
            "Export its tensors: np.savez('weights.npz', **{t['name']: interpreter.get_tensor(t['index']) for t in "
            "interpreter.get_tensor_details()}) with an ai_edge_litert Interpreter",
        ),
    ),
    Container(
        "Paddle",
        lambda head: head.path.suffix in (".pdparams", ".pdiparams", ".pdmodel"),
        unread=(
            "is a Paddle checkpoint",
            "Export it: np.savez('weights.npz', **{k: v.numpy() for k, v in paddle.load(path).items()})",
        ),
    ),
    Container(
        "TensorFlow checkpoint",
        lambda head: (
            bool(re.search(r"\.data-\d{5}-of-\d{5}$", head.name))
            or (head.path.suffix == ".index" and head.path.with_suffix(".data-00000-of-00001").is_file())
        ),
        unread=(
            "is a TensorFlow checkpoint",
            "Export it: np.savez('weights.npz', **{k: tf.train.load_variable(path, k) for k, _ in "
            "tf.train.list_variables(path)})",
        ),
    ),
    Container(
        "safetensors",
        lambda head: head.start[8:9] == b"{" or head.path.suffix == ".safetensors",
        (".safetensors",),
        checkpoint=CHECKPOINT + "safetensors:SafetensorsFile",
        features=FEATURES + "raw:safetensors_sources",
        shard=True,
    ),
    Container(
        "pickle",
        _is_pickle,
        (".joblib", ".pkl", ".pickle"),
        checkpoint=CHECKPOINT + "pickled:PickleFile",
        no_features=(
            "is a Python pickle, which can run code when it is opened, not features",
            "Where you trust it, save its arrays: np.savez(path, *arrays), or a folder with one .npy each.",
        ),
    ),
    Container(
        "nemo",
        lambda head: head.path.suffix == ".nemo",
        (".nemo",),
        checkpoint=CHECKPOINT + "packed:NemoFile",
    ),
    Container(
        "compressed",
        lambda head: bool(compression(head.start)),
        unread=("is a compressed file of no kind that toc reads", "Unpack it (gunzip, bunzip2, unxz, lz4 -d) first."),
    ),
    Container(
        "onnx",
        # No mark of its own: the version of its format, then the name of its maker.
        lambda head: head.path.suffix == ".onnx" or bool(re.match(rb"\x08[\x01-\x1f]\x12", head.start)),
        (".onnx",),
        checkpoint=CHECKPOINT + "onnx:OnnxFile",
    ),
    Container(
        "msgpack",
        lambda head: (
            head.path.suffix in (".msgpack", ".flax") or bool(re.match(rb"[\x81-\x8f][\xa0-\xbf\xd9]", head.start))
        ),
        (".msgpack", ".flax"),
        checkpoint=CHECKPOINT + "msgpack:MsgpackFile",
    ),
    Container(
        "text",
        lambda head: _is_table(head.start),
        (".txt", ".csv", ".tsv"),
        checkpoint=CHECKPOINT + "text:TextFile",
        no_features=(
            "is a text file, not features",
            "A table of numbers becomes one: np.save('x.npy', np.loadtxt(path, dtype='float32')).",
        ),
    ),
    Container(
        "tar",
        lambda head: head.start[257:262] == b"ustar",
        (".tar",),
        features=FEATURES + "tar:tar_sources",
        unread=("is a tar archive (torch before 0.1.10, or plain)", "Save it again with torch.save."),
    ),
    Container(
        "Kaldi archive",
        lambda head: bool(re.match(rb"[^\s\0]{1,4096} \0B", head.start)),
        (".ark",),
        features=FEATURES + "kaldi:ark_sources",
        unread=("is a Kaldi archive of features, not a checkpoint", "Give it as --features."),
    ),
    Container(
        "Kaldi list",
        lambda head: head.path.suffix == ".scp",
        (".scp",),
        features=FEATURES + "kaldi:scp_sources",
        unread=("is a Kaldi list of features, not a checkpoint", "Give it as --features."),
    ),
    Container(
        "Parquet",
        lambda head: head.start.startswith(b"PAR1"),
        (".parquet",),
        features=FEATURES + "columns:parquet_sources",
        unread=("is a Parquet table, not a checkpoint", "Give it as --features."),
    ),
    Container(
        "Arrow",
        lambda head: head.start.startswith(b"ARROW1") or head.path.suffix in (".arrow", ".feather"),
        (".arrow", ".feather"),
        features=FEATURES + "columns:arrow_sources",
        unread=("is an Arrow table, not a checkpoint", "Give it as --features."),
    ),
    Container(
        "MATLAB",
        lambda head: head.start.startswith(b"MATLAB 7.3 MAT-file"),
        (".mat",),
        features=FEATURES + "matlab:matlab_sources",
        unread=("is a MATLAB file of arrays, not a checkpoint", "Give it as --features, or save the codes as .npy."),
    ),
    Container(
        "old MATLAB",
        lambda head: head.start.startswith(b"MATLAB 5.0 MAT-file"),
        unread=("is a MATLAB file of before version 7.3", "Save it again in MATLAB: save(name, '-v7.3')."),
        no_features=("is a MATLAB file of before version 7.3", "Save it again in MATLAB: save(name, '-v7.3')."),
    ),
)


def _recognised(head: Head) -> Container | None:
    return next((container for container in CONTAINERS if container.recognise(head)), None)


def open_features_file(path: Path) -> dict[str, Any]:
    """Every number array of a features file, by key. InputError for a file that is missing, damaged, or holds none."""
    head = Head(path)
    found = _recognised(head)
    if found is None:
        raise InputError(
            f"{head.shown} is no features file that toc reads (it starts with {head.start[:8]!r}).",
            f"Features are in {', '.join(sorted(feature_suffixes()))}; a table of text: np.save('x.npy', np.loadtxt(path)).",
        )
    return found.open_features(path)


def container_of(path: Path) -> Container:
    """The row of a file or a folder. InputError for a path that is missing, damaged, or in no container of the table."""
    head = Head(path)
    found = _recognised(head)
    if found is not None:
        return found
    endings = "/".join(dict.fromkeys(s for row in CONTAINERS if row.checkpoint for s in row.suffixes))
    raise InputError(
        f"{head.shown} is in no container that toc reads (it starts with {head.start[:8]!r}).",
        f"It reads {endings} and folders of Hugging Face models.",
    )


def open_file(path: Path) -> Checkpoint:
    """The checkpoint in a file, or in the files that an index names. InputError for a folder."""
    container = container_of(path)
    if path.is_dir():
        raise InputError(f"{Head(path).shown} is a folder, not a file.", "Name a file in it.")
    return container.open_checkpoint(path)


def open_shard(path: Path) -> Checkpoint:
    """One file of a model in several. InputError for a container in which none comes."""
    container = container_of(path)
    if not container.shard:
        kinds = " or ".join(row.name for row in CONTAINERS if row.shard)
        raise InputError(f"{Head(path).shown} is of kind {container.name}; shards are {kinds} files.")
    return container.open_checkpoint(path)


def checkpoint_suffixes() -> frozenset[str]:
    """Endings of the files that may hold a checkpoint alone."""
    return frozenset(suffix for row in CONTAINERS if row.checkpoint for suffix in row.suffixes)


def feature_suffixes() -> frozenset[str]:
    """Endings of the files that may hold features, also where a folder holds checkpoints beside them."""
    endings = {suffix for row in CONTAINERS if row.features for suffix in row.suffixes}
    return frozenset(endings - {".ckpt", ".bin", ".th"})
