"""Checkpoints of every container behind one listing: `open_checkpoint`."""

from __future__ import annotations

from pathlib import Path

from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.containers import container_of

__all__ = ["Checkpoint", "Edits", "TensorInfo", "open_checkpoint"]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """List the tensors of a checkpoint: a file of any container, an index of shards, a folder of a model, or the name of
    a model on the Hugging Face hub (`org/name`, `hf://org/name@revision/file`), whose headers alone are fetched.

    No tensor data is read, no code of the file is run, no path out of its folder is followed.
    InputError, with a sentence for each kind, where the file is missing, damaged or refused.
    """
    from toc_cli.io.hub import hub_name, open_named

    named = hub_name(path)
    if named is not None:
        return open_named(named)
    path = Path(path)
    return container_of(path).open_checkpoint(path)
