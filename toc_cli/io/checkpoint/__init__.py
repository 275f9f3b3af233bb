"""Checkpoints of every container behind one listing: `open_checkpoint`."""

from __future__ import annotations

from pathlib import Path

from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.containers import container_of

__all__ = ["Checkpoint", "Edits", "TensorInfo", "open_checkpoint"]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """List the tensors of a checkpoint: a file of any container, an index of shards, or a folder of a model.

    No tensor data is read, no code of the file is run, no path out of its folder is followed.
    InputError, with a sentence for each kind, where the file is missing, damaged or refused.
    """
    path = Path(path)
    return container_of(path).open_checkpoint(path)
