"""Files of torch.save, zip and legacy: weights-only, or inert where foreign objects stand in the way.

A zip file is mapped, not read: the listing touches no tensor data, and `get` copies one tensor out.
"""

from __future__ import annotations

import mmap
import pickle
import warnings
import zipfile
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.checkpoint.base import Checkpoint, Edits, TensorInfo
from toc_cli.io.checkpoint.config import config_beside, write_config_beside
from toc_cli.io.checkpoint.inert import InertPickle
from toc_cli.io.checkpoint.stored_types import BYTES, type_name
from toc_cli.io.guarded import new_file
from toc_cli.io.head import Head
from toc_cli.io.names import printable

DEPTH_LIMIT = 32
REVISIT_LIMIT = 10_000
"""Times that a dictionary or list may be met again: a few copies of a section, not the 2^n paths of nested sharing."""
SMALL = 1 << 24
"""Bytes up to which an expanded tensor (one stored value, many elements) is taken for what it says."""

PLAIN = (str, int, float, bool, bytes, type(None), torch.dtype)


class TorchFile(Checkpoint):
    """One file of torch.save; nested dictionaries are sections."""

    container = "torch"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        head = Head(path)
        legacy = self._legacy = not head.is_zip
        _check_zip(head)
        self._size = path.stat().st_size
        self._tree, foreign = load_tree(path, legacy=legacy)
        if foreign:
            names = ", ".join(printable(name, 80) for name in foreign[:3]) + (", …" if len(foreign) > 3 else "")
            left_out = f"{printable(path)} also holds Python objects ({names})"
            self.read_only = f"{left_out}, which were not loaded and cannot be written back."
        self._places: dict[str, tuple[Hashable, ...]] = {}
        self._value_places: dict[tuple[str, ...], tuple[Hashable, ...]] = {}
        for place, leaf in leaves(self._tree):
            self._list(place, leaf)
        if not self.infos and foreign:
            raise InputError(
                f"{printable(path)} holds pickled objects ({printable(foreign[0], 80)}) and no tensors outside of "
                "them: loading it would run their code.",
                "Where you trust it, save its tensors: torch.save(model.state_dict(), 'weights.pt').",
            )
        self.config, config_files = config_beside(path)
        self.files = (path, *config_files)

    def _list(self, place: tuple[Hashable, ...], leaf: object) -> None:
        names = tuple(str(part) for part in place)
        if not isinstance(leaf, torch.Tensor):
            self.values[names] = leaf
            self._value_places[names] = place
            return
        if leaf.layout is not torch.strided or leaf.is_quantized:
            return
        address = leaf.untyped_storage().data_ptr()
        stored = type_name(leaf.dtype)
        if stored not in BYTES:
            return
        info = TensorInfo(names[:-1], names[-1] if names else "", tuple(leaf.shape), stored, address or None)
        if info.key in self.infos:
            raise InputError(f"{printable(self.path)} has two tensors of the name {printable(info.key)!r}.")
        self.infos[info.key] = info
        self._places[info.key] = place

    def get(self, key: str) -> torch.Tensor:
        info = self.require(key)
        tensor = at(self._tree, self._places[key])
        if info.nbytes > max(SMALL, self._size):
            raise InputError(
                f"{printable(self.path)}: {printable(key)} claims shape {info.shape}, more than the whole file holds."
            )
        return tensor.detach().clone(memory_format=torch.contiguous_format)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        # A private mapping: what is written into it stays in this process.
        tree, _ = load_tree(self.path, legacy=self._legacy)
        tree = self._edited(tree, edits.tensors)
        for names, value in edits.values.items():
            tree = put(tree, self._value_places.get(names, names), value)
        with atomic_file(target) as temporary:
            with new_file(temporary) as out:
                torch.save(tree, out)  # a legacy input too: that format writes memory addresses into the file
            return [target, *write_config_beside(target, self.config, edits.config)]

    def _edited(self, tree: Any, edits: Mapping[str, torch.Tensor]) -> Any:
        """The tree with tensors replaced: in place where the shape stays, so that every view follows.

        Tensors that were one view of one storage become one tensor again where the shape changes.
        """
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

    def _section_place(self, section: str) -> tuple[Hashable, ...]:
        """Where a section of the listing stands in the tree (its keys may be numbers there)."""
        names = tuple(section.split("/")) if section else ()
        for key, place in self._places.items():
            if self.infos[key].section == names:
                return place[:-1]
        return names


def load_tree(path: Path, *, legacy: bool) -> tuple[Any, list[str]]:
    """The object of the file and the foreign globals that were left out. InputError where it is damaged or refused."""
    shown = printable(path)
    # Only a private mapping: the tree is edited in place, and the input must not see it.
    private = torch.serialization.get_default_mmap_options() != getattr(mmap, "MAP_SHARED", None)
    options: dict[str, Any] = {"map_location": "cpu", "mmap": private and not legacy}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not legacy and "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
                raise InputError(f"{shown} is a TorchScript archive: it holds a program, and is not loaded.")
            return torch.load(path, weights_only=True, **options), []
        except pickle.UnpicklingError:
            pass
        except InputError:
            raise
        except Exception as error:  # whatever a parser makes of broken bytes
            raise _damaged(shown, error) from None
        inert = InertPickle()
        try:
            tree = torch.load(path, weights_only=False, pickle_module=inert, **options)
        except Exception as error:
            _refuse_programs(shown, inert)
            raise _damaged(shown, error) from None
    _refuse_programs(shown, inert)
    return tree, inert.names


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


def _damaged(shown: str, error: BaseException) -> InputError:
    reason = printable(str(error).partition("\n")[0].rstrip(".") or type(error).__name__)
    return InputError(f"{shown} is truncated or damaged: {reason}.", "Copy or download it again.")


def _refuse_programs(shown: str, inert: InertPickle) -> None:
    if inert.programs:
        names = ", ".join(printable(name, 80) for name in inert.programs[:3])
        raise InputError(
            f"{shown} asks to run {names} when it is loaded; nothing of it was run, and it is refused.",
            "Do not load it with pickle or torch.load(weights_only=False).",
        )


def leaves(tree: object) -> Iterator[tuple[tuple[Hashable, ...], object]]:
    """Tensors and plain values with their place, in file order; a list of plain values is one leaf.

    Foreign objects are none. InputError for a tree that is too deep or, through shared parts, too wide to walk.
    """
    stack: list[tuple[tuple[Hashable, ...], object]] = [((), tree)]
    seen: set[int] = set()
    revisits = 0
    while stack:
        place, node = stack.pop()
        if isinstance(node, (torch.Tensor, *PLAIN)):
            yield place, node
        elif isinstance(node, (list, tuple)) and all(isinstance(child, PLAIN) for child in node):
            yield place, list(node)
        elif isinstance(node, (dict, list, tuple)):
            revisits += id(node) in seen
            seen.add(id(node))
            if revisits > REVISIT_LIMIT or len(place) > DEPTH_LIMIT:
                raise InputError("The file nests its dictionaries too deep, or one inside of itself.")
            children = node.items() if isinstance(node, dict) else enumerate(node)
            stack.extend(reversed([((*place, key), child) for key, child in children]))


def at(tree: Any, place: tuple[Hashable, ...]) -> Any:
    """The node at a place."""
    for part in place:
        tree = tree[part]
    return tree


def put(tree: Any, place: tuple[Hashable, ...], value: object) -> Any:
    """The tree with the node at a place set: dictionaries and lists in place, tuples made anew, missing sections added."""
    if not place:
        return tuple(value) if isinstance(tree, tuple) and isinstance(value, list) else value
    part, rest = place[0], place[1:]
    if isinstance(tree, tuple):
        return tuple(put(child, rest, value) if i == part else child for i, child in enumerate(tree))
    tree[part] = put(tree.get(part, {}) if isinstance(tree, dict) else tree[part], rest, value)
    return tree
