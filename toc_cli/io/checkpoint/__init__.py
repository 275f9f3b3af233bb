"""Checkpoints of every container behind one listing: `open_checkpoint`."""

from __future__ import annotations

import os
from pathlib import Path

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.sniff import container_of
from toc_cli.io.names import printable

__all__ = ["Checkpoint", "Edits", "TensorInfo", "open_checkpoint"]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """List the tensors of a checkpoint: a file of any container, an index of shards, or a Hugging Face folder.

    No tensor data is read, no code of the file is run, no path out of its folder is followed.
    InputError, with a sentence for each kind, where the file is missing, damaged or refused.
    """
    path = Path(path)
    if os.path.isdir(path):  # says no to a name that is too long, where Path.is_dir raises
        from toc_cli.io.checkpoint.folder import Folder

        return Folder(path, open_file)
    return open_file(path)


def open_file(path: Path) -> Checkpoint:
    """`open_checkpoint` for a file."""
    kind = container_of(path)
    if kind == "index":
        from toc_cli.io.checkpoint.sharded import Sharded

        return Sharded(path, open_part)
    if kind in ("npz", "npy"):
        from toc_cli.io.checkpoint.arrays import NpyFile, NpzFile

        return NpzFile(path) if kind == "npz" else NpyFile(path)
    if kind == "h5":
        from toc_cli.io.checkpoint.hdf5 import Hdf5File

        return Hdf5File(path)
    if kind == "faiss":
        from toc_cli.io.checkpoint.faiss import FaissIndex

        return FaissIndex(path)
    return open_part(path)


def open_part(path: Path) -> Checkpoint:
    """A file that may also be one shard of several: safetensors or torch."""
    kind = container_of(path)
    if kind == "safetensors":
        from toc_cli.io.checkpoint.safetensors import SafetensorsFile

        return SafetensorsFile(path)
    if kind in ("torch", "torch legacy"):
        from toc_cli.io.checkpoint.torch_file import TorchFile

        return TorchFile(path, legacy=kind == "torch legacy")
    raise InputError(f"{printable(path)} is of kind {kind}; shards are safetensors or torch files.")
