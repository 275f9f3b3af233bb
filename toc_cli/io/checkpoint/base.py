"""What a checkpoint is to the rest of the tool: a cheap listing, tensors on request, and a way to write an edited copy.

The listing comes from headers alone; `get` reads one tensor. A reader never runs code of the file and never leaves its folder.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint.stored_types import BYTES, COMPLEX, WHOLE, torch_type
from toc_cli.io.names import printable
from toc_cli.io.standing import Standing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the listing, known without its data."""

    section: tuple[str, ...]
    """Nested dictionaries around it: `("state_dict",)` in a Lightning file, `()` in safetensors."""
    name: str
    """Its name inside the section."""
    shape: tuple[int, ...]
    stored: str
    """Type of the stored numbers by name: float32, bfloat16, Q4_0 (`stored_types`)."""
    storage: Hashable = None
    """Equal for tensors that share one storage in the file; None where the container cannot share."""
    packed: int | None = None
    """Bytes of the data of a type whose numbers have no whole count of bytes; None for the others."""

    @property
    def key(self) -> str:
        """The full name, sections first: `state_dict/quantize.embedding.weight`."""
        return "/".join((*self.section, self.name))

    @property
    def reads(self) -> str:
        """Name of the type that `get` gives: the stored one, float32 for one that is no type of torch (Q4_0)."""
        return self.stored if self.stored in BYTES else "float32"

    @property
    def dtype(self) -> torch.dtype:
        """The type that `get` gives."""
        return torch_type(self.reads)

    @property
    def is_floating(self) -> bool:
        """Whether it holds real numbers: what a table of code vectors is made of."""
        return self.stored not in WHOLE and self.stored not in COMPLEX

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * BYTES[self.stored] if self.packed is None else self.packed


@dataclass(frozen=True)
class Edits:
    """What an edited copy changes; everything else stays byte for byte."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Replaced or added tensors, by full key."""
    config: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    """Values of `config.json`, by path: `("vq_config", "embed_dim"): 10`."""
    values: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    """Plain values inside a torch file, by path: `("metadata", "kwargs", "codebook_dim"): [5, 4, 6]`."""
    without: frozenset[str] = frozenset()
    """Full keys that the copy leaves out (`Checkpoint.can_omit`)."""


class Checkpoint(ABC):
    """A readable checkpoint. One subclass per container, each in its own file."""

    can_omit = False
    """Whether an edited copy can leave tensors out."""
    container: str
    """safetensors, sharded safetensors, torch, npz, npy, h5, faiss, toc artefact."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """As the user named it: a file, or a folder."""
        self.infos: dict[str, TensorInfo] = {}
        """The listing by full key, in file order."""
        self._files: tuple[Path, ...] = ()
        self._standing = Standing([path])
        self.config: dict[str, Any] | None = None
        """`config.json` of a Hugging Face folder (or beside the named file); None without one."""
        self.values: dict[tuple[str, ...], Any] = {}
        """Plain leaves (numbers, strings, lists) of a torch file or of container metadata, by path."""
        self.read_only: str | None = None
        """Why an edited copy cannot be written in this container; None where it can."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that holds part of it, for hashing: weights first, then config.json."""
        return self._files

    @files.setter
    def files(self, files: tuple[Path, ...]) -> None:
        self._files = files
        self._standing.note(files)

    def refuse_changes(self) -> None:
        """InputError for a file that is not as it was when it was listed."""
        self._standing.refuse_changes(self._files)

    @abstractmethod
    def get(self, key: str) -> torch.Tensor:
        """The tensor under a full key, in its stored dtype and shape, on the CPU. InputError if it cannot be read."""

    @abstractmethod
    def write(self, target: Path, edits: Edits) -> list[Path]:
        """Write an edited copy to `target` (a folder where the input is a folder or sharded, else a file).

        Keys, order, dtypes, metadata and sharing of storage stay; nothing is left under a final name on failure (OutputError).
        Returns the files written. UsageError with `read_only` where that is set.
        """

    def close(self) -> None:  # noqa: B027 (most containers hold nothing open)
        """Release file handles."""

    def require(self, key: str) -> TensorInfo:
        """The listing entry of a key. InputError if the file has no such tensor."""
        info = self.infos.get(key)
        if info is None:
            raise InputError(f"{printable(self.path)} has no tensor {printable(key)!r}.", "`toc inspect` lists them.")
        return info

    def require_writable(self) -> None:
        """UsageError with the reason where an edited copy cannot be written."""
        if self.read_only:
            raise UsageError(self.read_only, "Use --emit codebook.")
