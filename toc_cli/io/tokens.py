"""Files of tokens: what `toc quantize` writes, and whole numbers of other origin.

Legend: N rows, L levels, H heads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.atomic import sha256
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.checkpoint.hdf5 import ERRORS, check_chunks, numeric_datasets, open_hdf5, read_all
from toc_cli.io.checkpoint.probe import refuse_crash
from toc_cli.io.names import printable

CODEBOOK_HASH = "toc.codebook_sha256"
"""Attribute of a file of tokens: the SHA-256 of the codebook that chose them."""
LABELS = ("label", "labels")
VECTORS = ".vectors"
"""What the name of a dataset of quantised vectors adds to that of its tokens."""


@dataclass(frozen=True)
class Tokens:
    """One dataset of tokens: leading axes, then levels (if several), then heads (if several)."""

    name: str
    shape: tuple[int, ...]
    source: h5py.Dataset | np.ndarray

    def lead(self, levels: int, heads: int) -> tuple[int, ...]:
        """The leading axes. InputError where the others are not those of a codebook of so many levels and heads."""
        axes = tuple(n for n in (levels, heads) if n > 1)
        lead = self.shape[: len(self.shape) - len(axes)]
        if self.shape[len(lead) :] != axes or not lead or math.prod(lead) == 0:
            raise InputError(
                f"{printable(self.name)} has shape {self.shape}, which is not one of tokens of {levels} levels and {heads} heads.",
                "Name the codebook that chose them; --id picks one of several.",
            )
        return lead

    def blocks(self, num_codes: tuple[int, ...], heads: int, most: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(start, stop) along the first axis, and the tokens (n, L, H) there, integers as stored; about `most` rows at once.

        InputError for a token that is none of its level's codes.
        """
        levels = len(num_codes)
        lead = self.lead(levels, heads)
        each = math.prod(lead[1:])
        step = max(1, most // each)
        for start in range(0, lead[0], step):
            stop = min(lead[0], start + step)
            try:
                block = np.asarray(self.source[start:stop]).reshape(-1, levels, heads)
                block = block.astype(block.dtype.newbyteorder("="), copy=False)
            except ERRORS as error:
                raise InputError(f"{printable(self.name)} cannot be read: {printable(error)}.") from None
            inside = block.min() >= 0 and block.max() < min(num_codes)  # far cheaper than each by its level
            outside = None if inside else (block < 0) | (block >= np.array(num_codes)[:, None])
            if outside is not None and outside.any():
                row, level, head = (int(axis[0]) for axis in outside.nonzero())
                raise InputError(
                    f"{printable(self.name)}, row {start * each + row}: token {block[row, level, head]} is no code of level {level}, "
                    f"which has {num_codes[level]}.",
                    "Name the codebook that chose these tokens.",
                )
            yield start, stop, block


class TokenFile:
    """The datasets of tokens of a file (`.h5`, `.npy`), and the hash of the codebook that chose them ("" where nothing says)."""

    def __init__(self, path: Path) -> None:
        self.path, self.codebook_hash, self.file = path, "", None
        if not path.is_file():
            raise InputError(f"{printable(path)} does not exist.", "toc quantize writes tokens.")
        if path.suffix == ".npy":
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except ERRORS as error:
                raise InputError(f"{printable(path)} cannot be read: {printable(error)}.") from None
            found = [("tokens", array)] if array.dtype.kind in "iu" else []
        else:
            refuse_crash(path, lambda: read_all(path))
            self.file = open_hdf5(path)
            try:
                self.codebook_hash = str(self.file.attrs.get(CODEBOOK_HASH, ""))
            except ERRORS as error:
                raise InputError(f"{printable(path)} cannot be read: {printable(error)}.") from None
            listed = numeric_datasets(self.file, path)
            try:
                found = [(name, self.file[name]) for name, array in listed.items() if array.dtype.kind in "iu"]
                own = [(name, dataset) for name, dataset in found if "num_codes" in dataset.attrs]
                for name, dataset in found:
                    check_chunks(dataset.id, f"{printable(path)}: {printable(name)}")
            except ERRORS as error:
                raise InputError(f"{printable(path)} cannot be read: {printable(error)}.") from None
            found = own or [(name, dataset) for name, dataset in found if name.rpartition("/")[2] not in LABELS]
        if not found:
            raise InputError(
                f"{printable(path)} holds no tokens: no dataset of whole numbers.", "toc quantize writes tokens."
            )
        self.datasets = [Tokens(name, tuple(source.shape), source) for name, source in found]

    def require(self, codebook_hash: str, shown: str) -> None:
        """InputError where the tokens say that another codebook chose them."""
        if self.codebook_hash and self.codebook_hash != codebook_hash:
            raise InputError(
                f"The tokens of {printable(self.path.name)} were chosen by another codebook than {printable(shown)}: SHA-256 "
                f"{printable(self.codebook_hash[:12])}…, not {codebook_hash[:12]}….",
                "Name that codebook.",
            )

    def others(self) -> list[str]:
        """The names of what lies beside the tokens and is not made of them: labels and the like."""
        if self.file is None:
            return []
        own = {tokens.name for tokens in self.datasets}
        made = {name + VECTORS for name in own}
        return [name for name in self.file if name not in own | made and isinstance(self.file[name], h5py.Dataset)]

    def close(self) -> None:
        """Release the file."""
        if self.file is not None:
            self.file.close()


def codebook_hash(ckpt: Checkpoint) -> str:
    """The SHA-256 of a lone file, and of the list of those of several."""
    return joined_hash([sha256(path) for path in ckpt.files if not path.name.endswith("config.json")])


def joined_hash(hashes: Sequence[str]) -> str:
    """One hash of the files of a checkpoint, in their order."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
