"""safetensors: the header is read and checked here, the data by the library, and copies are made byte for byte.

Format: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, then the data without holes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.config import config_beside, write_config_beside
from toc_cli.io.checkpoint.stored_types import BYTES, type_name
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
"""The format's name of each type, and ours."""
NAMES = {stored: name for name, stored in TYPES.items()}
ARTEFACT_KEY = "toc.schema"
AXES_LIMIT = 64
HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the safetensors library itself."""


class SafetensorsFile(Checkpoint):
    """One .safetensors file."""

    container = "safetensors"
    can_omit = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        header, self._start = read_header(path)
        self._file: Any = None
        metadata = header.pop("__metadata__", {})
        self.metadata: dict[str, str] = dict(metadata)
        self.values = {(key,): value for key, value in metadata.items()}
        self._spans = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        self._shares = {name: of for name, of in self.metadata.items() if of in header and name not in header}
        """Names of tensors that `save_model` left out, since they share the storage of another, and that one's name."""
        shared = set(self._shares.values())
        for name, of in ({name: name for name in header} | self._shares).items():
            shape, stored = tuple(header[of]["shape"]), TYPES[header[of]["dtype"]]
            self.infos[name] = TensorInfo((), name, shape, stored, of if of in shared else None)
        self.config, config_files = config_beside(path)
        self.files = (path, *config_files)
        if ARTEFACT_KEY in metadata:
            self.container = "toc artefact"
            self.read_only = "A toc artefact holds the pruned codebook alone, without a model around it."

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        try:
            if self._file is None:
                self._file = safe_open(self.path, framework="pt")
            return self._file.get_tensor(self._shares.get(key, key))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"{printable(self.path)}: {printable(key)} cannot be read: {printable(error)}.") from None

    def close(self) -> None:
        self._file = None

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        with atomic_file(target) as temporary:
            self.write_tensors(temporary, edits.tensors, edits.without)
            return [target, *write_config_beside(target, self.config, edits.config)]

    def write_tensors(
        self, target: Path, edits: Mapping[str, torch.Tensor], without: frozenset[str] = frozenset()
    ) -> None:
        """Copy the file to `target` with replaced and added tensors, some left out; the rest is copied as bytes. A name that shares
        the tensor of another stands on its own only where it is given another, or that one is left out."""
        apart = [
            name
            for name, of in self._shares.items()
            if name not in without and (of in without or (name in edits and not _same(edits[name], edits.get(of))))
        ]
        names = [
            *(name for name in self._spans if name not in without),
            *apart,
            *(name for name in edits if name not in self._spans and name not in self._shares),
        ]
        infos = {name: (type_name(edits[name].dtype), tuple(edits[name].shape)) for name in names if name in edits}
        for name, info in self.infos.items():
            infos.setdefault(name, (info.stored, info.shape))
        # Wide types first, as the library writes them, so that every tensor stays aligned after a slice.
        order = sorted(names, key=lambda name: -BYTES[infos[name][0]])
        metadata = {key: value for key, value in self.metadata.items() if key not in {*apart, *without}}
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        offset, spans = 0, {}
        for name in order:
            stored, shape = infos[name]
            spans[name] = [offset, offset + math.prod(shape) * BYTES[stored]]
            offset = spans[name][1]
        for name in names:
            stored, shape = infos[name]
            header[name] = {"dtype": NAMES[stored], "shape": list(shape), "data_offsets": spans[name]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with open(target, "wb") as out, open(self.path, "rb") as source:
            out.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                if name in edits:
                    out.write(tensor_bytes(edits[name]))
                else:
                    begin, end = self._spans[self._shares.get(name, name)]
                    source.seek(self._start + begin)
                    copy_bytes(source, out, end - begin)


def _same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    import torch

    return one is other or (other is not None and one.dtype == other.dtype and torch.equal(one, other))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The little-endian bytes of a tensor in row-major order."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def copy_bytes(source: BinaryIO, out: BinaryIO, count: int) -> None:
    """Copy `count` bytes in pieces of 1 MiB."""
    while count:
        block = source.read(min(count, 1 << 20))
        if not block:
            raise InputError("The input became shorter while it was read.")
        out.write(block)
        count -= len(block)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The checked header and where the data starts. InputError on any length, offset or shape that does not add up."""
    shown, size = printable(path), path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > HEADER_LIMIT:
            raise InputError(f"{shown} is not a safetensors file: its header claims {length:,} bytes.")
        if 8 + length > size:
            raise InputError(
                f"{shown} is truncated: {size:,} bytes cannot hold its header.", "Copy or download it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown} has a broken safetensors header: {printable(error)}.") from None
    if not isinstance(header, dict):
        raise InputError(f"{shown} has a broken safetensors header: it is no table of tensors.")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{shown} has a broken safetensors header: __metadata__ must map text to text.")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in entries.items():
        _check_entry(shown, name, entry)
    _check_spans(shown, entries, size - 8 - length)
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _check_entry(shown: str, name: str, entry: Any) -> None:
    where = f"{shown} has a broken safetensors header at {printable(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise InputError(f"{where}: dtype, shape and data_offsets are missing.")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in TYPES:
        raise InputError(f"{where}: dtype {printable(entry['dtype'], 40)} is no type that toc reads.")
    for field in ("shape", "data_offsets"):
        numbers = entry[field]
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise InputError(f"{where}: {field} must be a list of counts.")
        if len(numbers) > AXES_LIMIT:
            raise InputError(f"{where}: {field} has {len(numbers):,} entries.")
    if len(entry["data_offsets"]) != 2:
        raise InputError(f"{where}: data_offsets must be two numbers.")
    begin, end = entry["data_offsets"]
    nbytes = math.prod(entry["shape"]) * BYTES[TYPES[entry["dtype"]]]
    if end - begin != nbytes:
        raise InputError(f"{where}: shape {entry['shape']} takes {nbytes:,} bytes, its offsets give {end - begin:,}.")


def _check_spans(shown: str, entries: dict[str, Any], available: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise InputError(f"{shown} has a broken safetensors header: {printable(name)} {what}.")
        at = end
    if at > available:
        raise InputError(
            f"{shown} is truncated: {available:,} of {at:,} bytes of data are there.", "Copy or download it again."
        )
    if at < available:
        raise InputError(f"{shown} is damaged: {available - at:,} bytes follow the last tensor.")
