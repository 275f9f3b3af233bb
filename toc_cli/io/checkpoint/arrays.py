"""numpy files: .npy and .npz, listed from their headers, never unpickled."""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.config import config_beside, write_config_beside
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

EXPANSION_LIMIT = 200
"""Times its compressed size that an array may take in memory; random floats reach about 1.1, a zip bomb 1000."""
SMALL = 1 << 26
"""Bytes below which the expansion does not matter."""
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)
"""What reading a broken zip file can raise."""
HEADER_LIMIT = 1 << 16
"""Bytes of a .npy header; real ones have 118."""


@dataclass(frozen=True)
class ArrayHeader:
    """What a .npy header says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    length: int
    """Bytes of the header: where the data starts."""

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes], shown: str, available: int) -> ArrayHeader:
    """The checked header of a .npy stream of `available` bytes. InputError for objects and sizes that do not add up."""
    prefix = file.read(12)
    wide = prefix[6:7] > b"\x01"
    length = int.from_bytes(prefix[8:12] if wide else prefix[8:10], "little")
    if length > HEADER_LIMIT:
        raise InputError(f"{shown} has a broken numpy header: it claims {length:,} bytes.")
    text = io.BytesIO(prefix + file.read(max(length + (0 if wide else -2), 0)))
    try:
        version = np.lib.format.read_magic(text)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(text)
    except Exception as error:  # numpy tokenises the header as Python text, and passes on whatever that raises
        raise InputError(f"{shown} has a broken numpy header: {printable(str(error).partition(chr(10))[0])}.") from None
    if dtype.hasobject:
        raise InputError(
            f"{shown} is an array of Python objects, which only a pickle can hold; it is not loaded.",
            "Save it as plain numbers: np.save(path, np.stack(array).astype('float32')).",
        )
    if any(n < 0 for n in shape):
        raise InputError(f"{shown} has a broken numpy header: its shape is {shape}.")
    header = ArrayHeader(shape, dtype, fortran, text.tell())
    if header.length + header.nbytes > available:
        raise InputError(
            f"{shown} is truncated: shape {shape} of {dtype} takes {header.nbytes:,} bytes, "
            f"{max(available - header.length, 0):,} are there.",
            "Copy or download it again.",
        )
    return header


def stored_type(dtype: np.dtype[Any]) -> str | None:
    """The name of a numpy type (of either byte order); None for text, dates, records and long doubles."""
    return dtype.name if dtype.name in BYTES else None


class NpyFile(Checkpoint):
    """One .npy array, under the key ""."""

    container = "npy"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with open(path, "rb") as file:
            self._header = read_header(file, printable(path), path.stat().st_size)
        stored = stored_type(self._header.dtype)
        if stored is None:
            raise InputError(f"{printable(path)} holds {self._header.dtype}, which is no number.")
        self.infos[""] = TensorInfo((), "", self._header.shape, stored)
        self.config, config_files = config_beside(path)
        self.files = (path, *config_files)

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        with open(self.path, "rb") as file:
            return read_tensor(file)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        tensor = edits.tensors.get("")
        with atomic_file(target) as temporary:
            with open(temporary, "wb") as out:
                write_npy(out, self.get("") if tensor is None else tensor)
            return [target, *write_config_beside(target, self.config, edits.config)]


class NpzFile(Checkpoint):
    """The arrays of a .npz, by name."""

    container = "npz"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._compressed: dict[str, int] = {}
        for name, member, header in list_npz(path):
            stored = stored_type(header.dtype)
            if stored is not None:
                self.infos[name] = TensorInfo((), name, header.shape, stored)
                self._compressed[name] = member.compress_size
        self.config, config_files = config_beside(path)
        self.files = (path, *config_files)

    def get(self, key: str) -> torch.Tensor:
        info = self.require(key)
        check_expansion(f"{printable(self.path)}: {printable(key)}", info.nbytes, self._compressed[key])
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as file:
                return read_tensor(file)
        except ZIP_ERRORS as error:
            raise InputError(f"{printable(self.path)}: {printable(key)} is damaged: {printable(error)}.") from None

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        with atomic_file(target) as temporary:
            with zipfile.ZipFile(self.path) as source, zipfile.ZipFile(temporary, "w", allowZip64=True) as out:
                members = {member.filename: member for member in source.infolist()}
                method = next(iter(members.values())).compress_type
                for name in [*members, *(f"{key}.npy" for key in edits.tensors if f"{key}.npy" not in members)]:
                    entry = zipfile.ZipInfo(name)  # its date is 1980, so that equal inputs give equal bytes
                    entry.compress_type = members[name].compress_type if name in members else method
                    tensor = edits.tensors.get(name.removesuffix(".npy"))
                    with out.open(entry, "w", force_zip64=True) as file:
                        if tensor is None:
                            with source.open(name) as original:
                                while block := original.read(1 << 20):
                                    file.write(block)
                        else:
                            write_npy(file, tensor)
            return [target, *write_config_beside(target, self.config, edits.config)]


def list_npz(path: Path) -> list[tuple[str, zipfile.ZipInfo, ArrayHeader]]:
    """Name, zip entry and header of each array, in file order. InputError where one is not what its entry says."""
    shown = printable(path)
    found: dict[str, tuple[str, zipfile.ZipInfo, ArrayHeader]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                where = f"{shown}: {printable(name)}"
                if name in found:
                    raise InputError(f"{where} stands twice in the file.")
                with archive.open(member) as file:
                    found[name] = (name, member, read_header(file, where, member.file_size))
    except ZIP_ERRORS as error:
        raise InputError(f"{shown} is damaged: {printable(error)}.", "Copy or download it again.") from None
    return list(found.values())


def check_expansion(where: str, nbytes: int, stored: int) -> None:
    """Refuse to unpack into memory what a few stored bytes claim to be (a decompression bomb)."""
    if nbytes > SMALL and nbytes > EXPANSION_LIMIT * stored:
        raise InputError(f"{where} unpacks {stored:,} stored bytes to {nbytes:,}; that is refused as a zip bomb.")


def read_tensor(file: IO[bytes]) -> torch.Tensor:
    """A .npy stream as a tensor in native byte order, row-major."""
    import torch

    array = np.lib.format.read_array(file, allow_pickle=False)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape))


def write_npy(file: IO[bytes], tensor: torch.Tensor) -> None:
    """A tensor as a .npy stream. Through `write`, because `np.save` does not notice when the disk is full."""
    array = np.ascontiguousarray(tensor.detach().numpy()).reshape(tensor.shape)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.reshape(-1).view(np.uint8).data)
