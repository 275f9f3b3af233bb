"""Files of torch.save, zip and legacy, read without torch: the pickle gives the places of the tensors, `get` reads one.

Zip: `{name}/data.pkl`, one entry `{name}/data/{key}` per storage, `{name}/byteorder`. Legacy (before 1.6): pickles of a
magic number, a protocol, the machine, the object and the list of storages, then for each an int64 count and its numbers.
"""

from __future__ import annotations

import io
import math
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.config import config_beside, write_config_beside
from toc_cli.io.checkpoint.inert import Bounded, InertUnpickler
from toc_cli.io.checkpoint.rebuild import ARRAYS, StorageKind
from toc_cli.io.checkpoint.stored_types import BYTES, torch_type, type_name
from toc_cli.io.checkpoint.strided import Storage, Strided, file_bytes, held_bytes
from toc_cli.io.checkpoint.tree import at, drop, leaves, put
from toc_cli.io.checkpoint.zip_patch import refresh_checksum
from toc_cli.io.guarded import new_file
from toc_cli.io.head import Head
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch

SMALL = 1 << 24
"""Bytes up to which an expanded tensor (one stored value, many elements) is taken for what it says."""
LOCAL_HEADER = 30
"""Bytes of the header before a zip entry, without its name and extra field."""


class TorchFile(Checkpoint):
    """One file of torch.save; nested dictionaries are sections, items of lists have their number for a name."""

    container = "torch"
    can_omit = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        head = Head(path)
        self._legacy, self._size = not head.is_zip, head.size
        tree, foreign = read_tree(head)
        if foreign:
            names = ", ".join(printable(name, 80) for name in foreign[:3]) + (", …" if len(foreign) > 3 else "")
            left_out = f"{printable(path)} also holds Python objects ({names})"
            self.read_only = f"{left_out}, which were not loaded and cannot be written back."
        self.arrays: dict[str, Strided] = {}
        """By key; nothing of them is read."""
        self._places: dict[str, tuple[Hashable, ...]] = {}
        self._value_places: dict[tuple[str, ...], tuple[Hashable, ...]] = {}
        for place, leaf in leaves(tree):
            self._list(place, leaf)
        if not self.infos and foreign:
            raise only_objects(head.shown, foreign[0])
        self.config, config_files = config_beside(path)
        self.files = (path, *config_files)

    def _list(self, place: tuple[Hashable, ...], leaf: object) -> None:
        names = tuple(str(part) for part in place)
        if not isinstance(leaf, Strided):
            self.values[names] = leaf
            self._value_places[names] = place
            return
        storage = leaf.storage.key if leaf.storage.nbytes else None
        info = TensorInfo(names[:-1], names[-1] if names else "", leaf.shape, leaf.stored, storage)
        if info.key in self.infos:
            raise InputError(f"{printable(self.path)} has two tensors of the name {printable(info.key)!r}.")
        self.infos[info.key] = info
        self._places[info.key] = place
        self.arrays[info.key] = leaf

    def get(self, key: str) -> torch.Tensor:
        info = self.require(key)
        where = f"{printable(self.path)}: {printable(key)}"
        if info.nbytes > max(SMALL, self._size):
            raise InputError(f"{where} claims shape {info.shape}, more than the whole file holds.")
        try:
            return self.arrays[key].tensor()
        except InputError as error:
            raise InputError(f"{where}: {error.what}", error.hint) from None
        except OSError as error:
            raise InputError(f"{where} cannot be read: {error.strerror}.") from None

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        whole = not edits.values and not edits.without
        if whole and all(self._stays(key, tensor) for key, tensor in edits.tensors.items()):
            with atomic_file(target) as temporary:
                self._patch(temporary, edits.tensors)
                return [target, *write_config_beside(target, self.config, edits.config)]
        import torch

        # A private mapping: what is written into it stays in this process.
        tree = _load(self.path, legacy=self._legacy)
        tree = self._edited(tree, edits.tensors)
        tree = self._thinned(tree, edits.without)
        for names, value in edits.values.items():
            tree = put(tree, self._value_places.get(names, names), value)
        with atomic_file(target) as temporary:
            with new_file(temporary) as out:
                torch.save(tree, out)  # a legacy input too: that format writes memory addresses into the file
            return [target, *write_config_beside(target, self.config, edits.config)]

    def _stays(self, key: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor can be put in the place of the old one: the same shape and type, every number stored once."""
        old = self.arrays.get(key)
        if old is None or old.storage.start is None or old.storage.swapped:
            return False
        once = old.span >= math.prod(old.shape)
        return once and (old.shape, old.stored) == (tuple(tensor.shape), type_name(tensor.dtype))

    def _patch(self, target: Path, edits: Mapping[str, torch.Tensor]) -> None:
        """A copy of the file with the bytes of some tensors replaced; every view of their storage follows."""
        shutil.copyfile(self.path, target)
        members = {member.filename: member for member in Head(self.path).members}
        touched: dict[str, int] = {}
        for key, new in edits.items():
            old, size = self.arrays[key], BYTES[self.arrays[key].stored]
            start = old.storage.start
            assert start is not None
            first = start + old.offset * size
            if old.contiguous:
                data = new.detach().contiguous().reshape(-1).view(torch_type("uint8")).numpy().data
            else:
                data = _scattered(file_bytes(target, first)(0, old.span * size), old, new)
            with open(target, "r+b") as out:
                out.seek(first)
                out.write(data)
            touched[old.storage.key] = start
        for name, start in touched.items():
            refresh_checksum(target, members[name], start)

    def _edited(self, tree: Any, edits: Mapping[str, torch.Tensor]) -> Any:
        """The tree with tensors replaced: in place where the shape stays, so that every view follows.

        Tensors that were one view of one storage become one tensor again where the shape changes.
        """
        import torch

        replaced: dict[Hashable, torch.Tensor] = {}
        for key, new in edits.items():
            if key not in self._places:
                section, _, name = key.rpartition("/")
                tree = put(tree, (*self._section_place(section), name), new.clone())
                continue
            place = self._places[key]
            old = at(tree, place)
            expanded = old.untyped_storage().nbytes() < old.nbytes
            if old.shape == new.shape and old.dtype == new.dtype and not expanded:
                with torch.no_grad():
                    old.copy_(new)
                continue
            view = (old.untyped_storage().data_ptr(), old.storage_offset(), old.shape, old.stride())
            if view not in replaced:
                copy = new.detach().clone(memory_format=torch.contiguous_format)
                is_parameter = isinstance(old, torch.nn.Parameter)
                replaced[view] = torch.nn.Parameter(copy, old.requires_grad) if is_parameter else copy
            tree = put(tree, place, replaced[view])
        return tree

    def _thinned(self, tree: Any, without: frozenset[str]) -> Any:
        """The tree without some tensors; a top-level entry all of whose tensors go, goes whole (an optimizer is no use without)."""
        left = {place[0] for key, place in self._places.items() if key not in without and len(place) > 1}
        places = {place[:1] if place[0] not in left else place for key in without for place in [self._places[key]]}
        for place in sorted(places, key=repr):
            tree = drop(tree, place)
        return tree

    def _section_place(self, section: str) -> tuple[Hashable, ...]:
        """Where a section of the listing stands in the tree (its keys may be numbers there)."""
        names = tuple(section.split("/")) if section else ()
        for key, place in self._places.items():
            if self.infos[key].section == names:
                return place[:-1]
        return names


def read_tree(head: Head) -> tuple[Any, list[str]]:
    """The object of a torch file, its tensors as `Strided`, and its foreign globals. Nothing of it is run."""
    _check_zip(head)
    if head.is_zip:
        return _read_zip(head)
    with head.open() as file:
        return _read_legacy(head.shown, file, head.size, lambda start, _: file_bytes(head.path, head.base + start))


def only_objects(shown: str, name: str) -> InputError:
    """The error of a file whose tensors, if any, are inside of objects of a class."""
    return InputError(
        f"{shown} holds pickled objects ({printable(name, 80)}) and no tensors outside of them: loading it would run "
        "their code.",
        "Where you trust it, save its tensors: torch.save(model.state_dict(), 'weights.pt').",
    )


def _scattered(data: bytearray, old: Strided, new: torch.Tensor) -> memoryview:
    """The bytes from the first number of a view to its last, with the view's own numbers replaced."""
    import torch

    numbers = torch.frombuffer(data, dtype=torch.uint8).view(new.dtype)
    numbers.as_strided(old.shape, old.stride).copy_(new)
    return memoryview(data)


def _load(path: Path, *, legacy: bool) -> Any:
    """The object of a file that is to be written back, by torch itself. InputError where torch refuses it."""
    import mmap

    import torch

    # Only a private mapping: the tree is edited in place, and the input must not see it.
    private = torch.serialization.get_default_mmap_options() != getattr(mmap, "MAP_SHARED", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, weights_only=True, map_location="cpu", mmap=private and not legacy)
        except Exception as error:  # whatever a parser makes of broken bytes
            raise damaged(printable(path), error) from None


def _read_zip(head: Head) -> tuple[Any, list[str]]:
    """The object of a zip file and its foreign globals."""
    main = next(name for name in head.entries if name.endswith("/data.pkl"))
    root = main.removesuffix("data.pkl")
    members = {member.filename: member for member in head.members}
    storages: dict[str, Storage] = {}
    swapped = entry_bytes(head, members.get(f"{root}byteorder")) == b"big"

    def persistent(pid: Any) -> Any:
        kind, key, count = _storage_id(pid)
        if key not in storages:
            member = members.get(f"{root}data/{key}")
            if member is None or member.file_size < count * BYTES[kind]:
                raise ValueError(f"the storage {printable(key)} is missing or short")
            start = data_start(head, member)
            reader = file_bytes(head.path, head.base + start)
            storages[key] = Storage(kind, member.file_size, reader, member.filename, swapped, start)
        return storages[key]

    data = entry_bytes(head, members[main])
    return _unpickled(head.shown, Bounded(io.BytesIO(data), len(data)), persistent)


def _storage_id(pid: Any) -> tuple[str, str, int]:
    """Type, key and count of numbers of a storage, out of a persistent id."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, count = pid[:5]
    if not isinstance(kind, StorageKind) or type(count) is not int or not 0 <= count < 1 << 62:
        raise ValueError("a storage of no known type")
    return str(kind), str(key)[:200], count


ZIP_ERRORS = (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zlib.error)
"""What reading an entry of a damaged zip file raises."""


def data_start(head: Head, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip entry stand in the file."""
    with head.open() as file:
        file.seek(member.header_offset)
        local = file.read(LOCAL_HEADER)
    if len(local) < LOCAL_HEADER or not local.startswith(b"PK\x03\x04"):
        raise ValueError(f"the entry {printable(member.filename)} is not where the directory says")
    start = (
        member.header_offset
        + LOCAL_HEADER
        + int.from_bytes(local[26:28], "little")
        + int.from_bytes(local[28:30], "little")
    )
    if start + member.file_size > head.size:
        raise ValueError(f"the entry {printable(member.filename)} reaches past the end")
    return start


def entry_bytes(head: Head, member: zipfile.ZipInfo | None) -> bytes:
    """The bytes of a small zip entry; b"" without one."""
    if member is None:
        return b""
    try:
        with head.open() as file, zipfile.ZipFile(file) as archive:
            return archive.read(member)
    except ZIP_ERRORS as error:
        raise damaged(head.shown, error) from None


def read_legacy_bytes(shown: str, data: bytes) -> Any:
    """The object of a legacy file in memory: how a plain pickle holds a storage of torch."""
    return _read_legacy(
        shown, io.BytesIO(data), len(data), lambda start, count: held_bytes(data[start : start + count])
    )[0]


def _read_legacy(
    shown: str, file: IO[bytes], size: int, reader: Callable[[int, int], Callable[[int, int], bytearray]]
) -> tuple[Any, list[str]]:
    """`reader` gives, for the first byte and the count of a storage, its `Storage.read`."""
    source = Bounded(file, size)
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]
        kind, key, count = _storage_id(pid)
        return storages.setdefault(key, Storage(kind, count * BYTES[kind], held_bytes(b""), key))

    for _ in range(3):  # magic number, protocol, machine
        _unpickled(shown, source)
    found = _unpickled(shown, source, persistent)
    keys, _ = _unpickled(shown, source)
    try:
        for key in map(str, keys):
            storage = storages[key]
            count = int.from_bytes(source.read(8), "little")
            if count * BYTES[storage.stored] != storage.nbytes:
                raise ValueError(f"the storage {printable(key)} has another size than it claims")
            storage.read = reader(source.at, storage.nbytes)
            source.skip(storage.nbytes)
    except (EOFError, ValueError, KeyError, TypeError) as error:
        raise damaged(shown, error) from None
    return found


def _unpickled(shown: str, source: Bounded, persistent: Any = None) -> tuple[Any, list[str]]:
    """The next object of a stream and the foreign globals in it. InputError where it is damaged or wants to run something."""
    unpickler = InertUnpickler(source, ARRAYS, persistent)
    try:
        tree = unpickler.load()
    except Exception as error:  # whatever a parser makes of broken bytes
        refuse_programs(shown, unpickler)
        raise damaged(shown, error) from None
    refuse_programs(shown, unpickler)
    return tree, unpickler.names


def _check_zip(head: Head) -> None:
    """InputError for archives that torch.save never writes."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in head.members):
        raise InputError(
            f"{head.shown} is a torch file with compressed entries, which torch.save never writes.",
            "Unzip it and zip it again without compression, or save it again with torch.save.",
        )
    if sum(member.file_size for member in head.members) > head.size:
        raise InputError(f"{head.shown} is damaged: its zip entries claim more bytes than the file has.")
    if head.is_zip and head.path.suffix == ".safetensors":
        raise InputError(f"{head.shown} is a torch file under the name of a safetensors file.", "Rename it to .pt.")


def damaged(shown: str, error: BaseException) -> InputError:
    """The sentence for bytes that do not make an object."""
    told = not isinstance(error, LookupError) and str(error).partition("\n")[0].rstrip(".")
    reason = printable(told or type(error).__name__)
    return InputError(f"{shown} is truncated or damaged: {reason}.", "Copy or download it again.")


def refuse_programs(shown: str, inert: InertUnpickler) -> None:
    """InputError where the pickle asks for what no checkpoint needs."""
    if inert.programs:
        names = ", ".join(printable(name, 80) for name in inert.programs[:3])
        raise InputError(
            f"{shown} asks to run {names} when it is loaded; nothing of it was run, and it is refused.",
            "Do not load it with pickle or torch.load(weights_only=False).",
        )
