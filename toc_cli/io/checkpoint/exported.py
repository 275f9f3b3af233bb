"""torch.export archives (.pt2) and skops files: zip archives with a JSON index of raw or numpy arrays."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.arrays import read_header, stored_type
from toc_cli.io.checkpoint.listed import Listed
from toc_cli.io.checkpoint.pickled import refuse_unlike
from toc_cli.io.checkpoint.stored_types import BYTES
from toc_cli.io.checkpoint.strided import Storage, column_major, file_bytes, row_major, strided
from toc_cli.io.checkpoint.torch_file import ZIP_ERRORS, damaged, data_start, entry_bytes
from toc_cli.io.head import Head
from toc_cli.io.names import printable

EXPORT_TYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 10: "complex64",
    11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2",
}  # fmt: skip
"""Numbers of types in the schema of torch.export."""
INDEX_LIMIT = 1 << 26
DEPTH_LIMIT = 32


class ExportedFile(Listed):
    """A .pt2: `{name}/data/weights/model_weights_config.json` says where each tensor lies in `{name}/data/weights/weight_N`."""

    container = "pt2"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        head = Head(path)
        members = {member.filename: member for member in head.members}
        index = next(name for name in members if name.endswith("data/weights/model_weights_config.json"))
        for name, entry in _index(head, members[index]).get("config", {}).items():
            try:
                self._tensor(head, members, index.rpartition("/")[0], name, entry)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(f"{head.shown} is damaged at {printable(name)}: {printable(error)}.") from None

    def _tensor(self, head: Head, members: dict[str, zipfile.ZipInfo], folder: str, name: str, entry: Any) -> None:
        about, stored = entry["tensor_meta"], EXPORT_TYPES.get(entry["tensor_meta"]["dtype"])
        member = members[f"{folder}/{entry['path_name']}"]
        if stored is None or entry.get("use_pickle") or member.compress_type != zipfile.ZIP_STORED:
            return
        shape, stride = ([n["as_int"] for n in about[key]] for key in ("sizes", "strides"))
        storage = Storage(stored, member.file_size, file_bytes(head.path, data_start(head, member)), member.filename)
        self.add((), name, strided(storage, stored, about["storage_offset"]["as_int"], shape, stride))


class SkopsFile(Listed):
    """A skops file: `schema.json` is the tree of objects, arrays are .npy members."""

    container = "skops"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        head = Head(path)
        members = {member.filename: member for member in head.members}
        kinds: list[str] = []
        stack: list[tuple[tuple[str, ...], Any]] = [((), _index(head, members["schema.json"]))]
        while stack:
            place, node = stack.pop()
            if not isinstance(node, dict) or len(place) > DEPTH_LIMIT:
                continue
            module, kind, content = str(node.get("__module__")), str(node.get("__class__")), node.get("content")
            if module.startswith("sklearn."):
                kinds.append(f"{module}.{kind}")
            if node.get("__loader__") == "NdArrayNode" and isinstance(node.get("file"), str):
                self._array(head, members.get(node["file"]), place)
            elif isinstance(content, dict):
                named = content if kind == "dict" or "__class__" not in content else {"": content}
                stack += [((*place, str(key)) if key else place, child) for key, child in named.items()]
            elif isinstance(content, list):
                stack += [((*place, str(i)), child) for i, child in enumerate(content)]
        self.values["classes",] = kinds
        refuse_unlike(head.shown, kinds)

    def _array(self, head: Head, member: zipfile.ZipInfo | None, place: tuple[str, ...]) -> None:
        if member is None:
            raise InputError(f"{head.shown} names an array that it does not hold.")
        where = f"{head.shown}: {printable('/'.join(place))}"
        try:
            with zipfile.ZipFile(head.path) as archive, archive.open(member) as file:
                header = read_header(file, where, member.file_size)
            stored = stored_type(header.dtype)
            if stored is None or member.compress_type != zipfile.ZIP_STORED:
                return
            start = data_start(head, member) + header.length
        except ZIP_ERRORS as error:
            raise damaged(head.shown, error) from None
        nbytes = math.prod(header.shape) * BYTES[stored]
        storage = Storage(stored, nbytes, file_bytes(head.path, start), member.filename, header.dtype.byteorder == ">")
        order = column_major if header.fortran else row_major
        self.add(place[:-1], place[-1] if place else "", strided(storage, stored, 0, header.shape, order(header.shape)))


def _index(head: Head, member: zipfile.ZipInfo) -> dict[str, Any]:
    if member.file_size > INDEX_LIMIT:
        raise InputError(f"{head.shown} has an index of {member.file_size:,} bytes.")
    try:
        found = json.loads(entry_bytes(head, member))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{head.shown} is damaged: {printable(member.filename)} is no index.")
    return found
