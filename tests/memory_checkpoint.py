"""A checkpoint that lives in memory, for tests of what is found in it and of what is edited."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.stored_types import type_name


class MemoryCheckpoint(Checkpoint):
    """Full keys to tensors; the part before the last slash is the section."""

    container = "torch"

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], config: dict[str, Any] | None = None, **values: Any
    ) -> None:
        super().__init__(Path("memory.pt"))
        self.tensors = dict(tensors)
        self.config = config
        self.values = {tuple(path.split("/")): value for path, value in values.items()}
        for key, tensor in self.tensors.items():
            *section, name = key.split("/")
            storage = tensor.untyped_storage().data_ptr()
            self.infos[key] = TensorInfo(tuple(section), name, tuple(tensor.shape), type_name(tensor.dtype), storage)

    def get(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def write(self, target: Path, edits: Edits) -> list[Path]:
        torch.save(self.edited(edits).tensors, target)
        return [target]

    def edited(self, edits: Edits) -> MemoryCheckpoint:
        """The checkpoint that `write` would leave."""
        return MemoryCheckpoint({**self.tensors, **edits.tensors}, self.config)
