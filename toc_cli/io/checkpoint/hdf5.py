"""HDF5: numeric datasets by path. Links and storage that lead out of the file are refused before anything is read."""

from __future__ import annotations

import itertools
import math
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.checkpoint.arrays import check_expansion, stored_type
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.config import config_beside, write_config_beside
from toc_cli.io.checkpoint.probe import refuse_crash
from toc_cli.io.guarded import NewHdf5
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

DEPTH_LIMIT = 32
OBJECT_LIMIT = 1_000_000
SMALL = 1 << 26
"""Bytes below which what a chunk unpacks to does not matter."""
DEFLATE_MOST = 1032
"""Times its length that deflate can unpack to."""
BOMB_CHECK = 1 << 28
"""Stored bytes per dataset that are unpacked once more to see what they hold."""
MANY = 500
"""Datasets that the child process reads: a file of more costs more to open one by one than its checks are worth."""
PROBED = 1 << 26
"""Bytes that are read in the child process first."""
ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, UnicodeError)

STAMPED = (b"toc.module", b"toc.side", b"toc.channel_axis", b"toc.checkpoint")


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading. InputError if it is damaged or locked."""
    try:
        return h5py.File(path, "r")
    except ERRORS as error:
        raise InputError(f"{printable(path)} cannot be opened as HDF5: {printable(error)}.") from None


@dataclass(frozen=True)
class Hdf5Array:
    """What is known of a dataset without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    filtered: bool
    """Whether chunks are compressed or otherwise encoded."""
    stamped: bool = False
    """Whether a capture noted where it comes from."""
    offset: int | None = None
    """Where in the file its numbers lie, as numpy knows them; None where HDF5 has to find or to convert them."""


def numeric_datasets(file: h5py.File, path: Path) -> dict[str, Hdf5Array]:
    """The number datasets of a file by path, in the file's order; one that is linked twice is listed once.

    InputError for external links, external storage and virtual datasets: all of them read other files.
    """
    try:
        return _arrays(file, printable(path))
    except ERRORS as error:
        raise InputError(f"{printable(path)} is damaged: {printable(error)}.", "Copy or download it again.") from None


def _arrays(file: h5py.File, shown: str) -> dict[str, Hdf5Array]:
    """By h5py's low-level calls: its objects cost half a millisecond each, and a file may hold one dataset per clip."""
    links = _links(file, shown)
    groups = {name.rpartition(b"/")[0] for name, _ in links}
    found: dict[str, Hdf5Array] = {}
    seen: set[int] = set()
    types: list[tuple[Any, np.dtype[Any], bool]] = []
    for link, address in links:
        if link in groups or address in seen:
            continue
        seen.add(address)
        try:
            dataset = h5py.h5d.open(file.id, link)
        except ERRORS:
            if h5py.h5o.get_info(file.id, link).type != h5py.h5o.TYPE_DATASET:
                continue
            raise
        name = link.decode("utf-8", "surrogateescape")
        array = _array(dataset, types, shown, name)
        if array is not None:
            found[name] = array
    return found


def _links(file: h5py.File, shown: str) -> list[tuple[bytes, int]]:
    """Path and address of every hard link of a file. InputError for links to other files, and for too many or too deep."""
    found: list[tuple[bytes, int]] = []
    refused: list[str] = []

    def visit(name: bytes, info: Any) -> bool | None:
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            shown_name = printable(name.decode("utf-8", "surrogateescape"))
            refused.append(f"{shown} links {shown_name} to another file; external links are refused.")
        elif name.count(b"/") > DEPTH_LIMIT or len(found) > OBJECT_LIMIT:
            refused.append(f"{shown} nests its groups too deep or holds too many objects.")
        elif info.type == h5py.h5l.TYPE_HARD:
            found.append((name, info.u))
        return True if refused else None  # anything but None ends the visit

    created = file.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED
    file.id.links.visit(visit, info=True, idx_type=h5py.h5.INDEX_CRT_ORDER if created else h5py.h5.INDEX_NAME)
    if refused:
        raise InputError(refused[0])
    return found


def _array(dataset: Any, types: list[tuple[Any, np.dtype[Any], bool]], shown: str, name: str) -> Hdf5Array | None:
    """None for text, records and datasets of no space. InputError for storage in other files. `types` holds the last type met:
    its dtype, and whether numpy's numbers are stored as they are."""
    stored = dataset.get_type()
    if not types or not stored.equal(types[0][0]):
        dtype = dataset.dtype
        plain = dtype.kind in "fiuc" and bool(stored.equal(h5py.h5t.py_create(dtype)))
        types[:] = [(stored, dtype, plain)]
    _, dtype, plain = types[0]
    shape = dataset.shape
    if dtype.kind not in "fiubc" or (not shape and dataset.get_space().get_simple_extent_type() == h5py.h5s.NULL):
        return None
    stamped = h5py.h5a.get_num_attrs(dataset) > 0 and any(h5py.h5a.exists(dataset, name) for name in STAMPED)
    offset = dataset.get_offset()
    if offset is not None:
        return Hdf5Array(shape, dtype, None, False, stamped, offset if plain else None)
    creation = dataset.get_create_plist()
    layout = creation.get_layout()
    where = f"{shown}: {printable(name)}"
    if creation.get_external_count():
        raise InputError(f"{where} keeps its data in another file; external storage is refused.")
    if layout == h5py.h5d.VIRTUAL:
        raise InputError(f"{where} is a virtual dataset over other files; it is refused.")
    chunks = creation.get_chunk() if layout == h5py.h5d.CHUNKED else None
    return Hdf5Array(shape, dtype, chunks, creation.get_nfilters() > 0, stamped)


def check_written(dataset: Any, where: str) -> None:
    """InputError where a large dataset (low-level) is mostly fill values: it may announce any number of rows in no bytes."""
    creation = dataset.get_create_plist()
    announced = math.prod(dataset.shape) * dataset.dtype.itemsize
    if announced <= SMALL:
        return
    if creation.get_layout() == h5py.h5d.CHUNKED:
        written = dataset.get_num_chunks() * math.prod(creation.get_chunk()) * dataset.dtype.itemsize
    else:
        written = dataset.get_storage_size()
    if 2 * written < announced:
        raise InputError(
            f"{where} announces {announced:,} bytes, of which {written:,} were ever written.",
            "Write it in full, or resize it.",
        )


def check_chunks(dataset: Any, where: str, *, flood: int = SMALL) -> None:
    """Whether the stored chunks of a dataset (low-level) can be what it says. InputError for what would crash or flood:
    a chunk too short for its checksum, or far longer than what it holds, stored or unpacked; chunks that could unpack to
    more than `flood` bytes are unpacked once more to see."""
    creation = dataset.get_create_plist()
    if not creation.get_nfilters() or creation.get_layout() != h5py.h5d.CHUNKED:
        return
    filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
    whole = math.prod(creation.get_chunk()) * dataset.dtype.itemsize
    most, checked = whole + whole // 8 + 4096, BOMB_CHECK

    def look(chunk: Any) -> None:
        nonlocal checked
        packed = [code for i, code in enumerate(filters) if not chunk.filter_mask >> i & 1]
        if chunk.size > most or (packed[-1:] == [h5py.h5z.FILTER_FLETCHER32] and chunk.size < 4):
            raise InputError(f"{where} is damaged: a chunk of {whole:,} bytes is stored in {chunk.size:,}.")
        if h5py.h5z.FILTER_DEFLATE in packed and chunk.size * DEFLATE_MOST > max(flood, whole) and checked > 0:
            checked -= chunk.size
            _check_inflated(dataset, chunk, packed, whole, where)

    dataset.chunk_iter(look)


def _check_inflated(dataset: Any, chunk: Any, packed: list[int], whole: int, where: str) -> None:
    """InputError where a chunk inflates to more than it holds: the library would unpack all of it."""
    outer = packed[packed.index(h5py.h5z.FILTER_DEFLATE) + 1 :]
    if any(code != h5py.h5z.FILTER_FLETCHER32 for code in outer):
        return
    _, data = dataset.read_direct_chunk(chunk.chunk_offset)
    decoder, left, pending = zlib.decompressobj(), whole + 64, bytes(data)
    while pending and left > 0 and not decoder.eof:
        left -= len(decoder.decompress(pending, min(left, 1 << 20)))
        pending = decoder.unconsumed_tail
    if left <= 0:
        raise InputError(f"{where} unpacks a chunk of {whole:,} bytes to more than that; refused as a bomb.")


class Hdf5File(Checkpoint):
    """The datasets of an HDF5 file; keys are their paths without the leading slash."""

    container = "h5"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        refuse_crash(path, lambda: read_all(path))
        with open_hdf5(path) as file:
            for name, dataset in numeric_datasets(file, path).items():
                stored = stored_type(dataset.dtype)
                if stored is not None:
                    self.infos[name] = TensorInfo((), name, dataset.shape, stored)
            self.values |= {(name,): value for name, value in _attributes(file).items()}
        self.config, config_files = config_beside(path)
        self.files = (path, *config_files)

    def get(self, key: str) -> torch.Tensor:
        import torch

        info = self.require(key)
        where = f"{printable(self.path)}: {printable(key)}"
        with open_hdf5(self.path) as file:
            try:
                check_expansion(where, info.nbytes, file[key].id.get_storage_size())
                check_chunks(file[key].id, where)
                array = np.asarray(file[key][()])
            except ERRORS as error:
                raise InputError(f"{where} cannot be read: {printable(error)}.") from None
        native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        return torch.from_numpy(native).reshape(info.shape)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        with atomic_file(target) as temporary:
            with open_hdf5(self.path) as source, NewHdf5(temporary) as out:
                _copy(source, out.root, "", edits, {})
                for key, tensor in edits.tensors.items():
                    if key not in self.infos:
                        out.root.create_dataset(key, data=tensor.numpy())
            return [target, *write_config_beside(target, self.config, edits.config)]


def read_all(path: Path) -> None:
    """What a later read may touch, in a process of its own: names, attributes, and data up to `PROBED` bytes of `MANY` arrays."""
    left = PROBED
    with open_hdf5(path) as file:
        _attributes(file)
        for name in itertools.islice(numeric_datasets(file, path), MANY):
            left -= file[name].nbytes
            if left < 0:
                break
            with suppress(*ERRORS, InputError):
                check_chunks(file[name].id, name)
                file[name][()]


def _attributes(file: h5py.File) -> dict[str, Any]:
    """Texts and numbers of the file's own attributes, without those that cannot be read."""
    found = {}
    with suppress(*ERRORS):
        for name in file.attrs:
            with suppress(*ERRORS):
                value = file.attrs[name]
                if isinstance(value, (str, np.generic)):
                    found[name] = value.item() if isinstance(value, np.generic) else value
    return found


def _copy(source: h5py.Group, out: h5py.Group, prefix: str, edits: Edits, copied: dict[Any, str]) -> None:
    """Copy a group: edited datasets are made anew with the layout of the old, hard links to one object stay one object."""
    for name, value in source.attrs.items():
        out.attrs.create(name, value, dtype=source.attrs.get_id(name).dtype)
    for name in source:
        link = source.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            out[name] = link
            continue
        item = source[name]
        address = h5py.h5o.get_info(item.id).addr
        if address in copied:
            out[name] = out.file[copied[address]]
            continue
        copied[address] = "/" + prefix + name
        if isinstance(item, h5py.Group):
            _copy(item, out.create_group(name), f"{prefix}{name}/", edits, copied)
        elif prefix + name in edits.tensors:
            _write_dataset(item, out, name, edits.tensors[prefix + name])
        else:
            source.copy(item, out, name)


def _write_dataset(old: h5py.Dataset, out: h5py.Group, name: str, tensor: torch.Tensor) -> None:
    chunks = old.chunks and tuple(min(c, n) for c, n in zip(old.chunks, tensor.shape, strict=True))
    new = out.create_dataset(
        name, data=tensor.numpy(), chunks=chunks, compression=old.compression,
        compression_opts=old.compression_opts, shuffle=old.shuffle or None, fletcher32=old.fletcher32 or None,
    )  # fmt: skip
    for key, value in old.attrs.items():
        new.attrs.create(key, value, dtype=old.attrs.get_id(key).dtype)
