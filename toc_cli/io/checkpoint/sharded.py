"""A model in several files: the `weight_map` of its index (`*.safetensors.index.json`, `*.bin.index.json`) says which."""

from __future__ import annotations

import json
import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_folder
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.checkpoint.config import patched, read_json, stays_inside, write_config
from toc_cli.io.containers import open_shard
from toc_cli.io.names import printable

if TYPE_CHECKING:
    import torch


class Sharded(Checkpoint):
    """The parts of an index as one checkpoint."""

    def __init__(self, index: Path) -> None:
        super().__init__(index)
        self._index = read_json(index)
        weight_map = self._index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{printable(index)} has no weight_map: it is no index of a sharded model.")
        self._parts: dict[str, Checkpoint] = {}
        for key, name in weight_map.items():
            path = inside(index, name)
            if name not in self._parts:
                self._parts[name] = open_shard(path)
            if key not in self._parts[name].infos:
                raise InputError(f"{printable(index)} places {printable(key)} in {printable(name)}, which lacks it.")
            self.infos[key] = self._parts[name].infos[key]
        self._shard_of: dict[str, str] = weight_map
        first = next(iter(self._parts.values()))
        self.container = f"sharded {first.container}"
        self.config = first.config
        self.can_omit = all(part.can_omit for part in self._parts.values())
        self.read_only = next((part.read_only for part in self._parts.values() if part.read_only), None)
        weights = [part.files[0] for part in self._parts.values()]
        self.files = (*weights, index, *first.files[1:])

    def get(self, key: str) -> torch.Tensor:
        self.require(key)
        return self._parts[self._shard_of[key]].get(key)

    def write(self, target: Path, edits: Edits) -> list[Path]:
        self.require_writable()
        with atomic_folder(target) as folder:
            names = self.write_parts(folder, edits)
            if self.config is not None:
                write_config(folder / "config.json", patched(self.config, edits.config))
                names.append("config.json")
        return [target / name for name in names]

    def write_parts(self, folder: Path, edits: Edits) -> list[str]:
        """Write every shard and then the index into `folder`; returns the file names."""
        edited = [self._shard_of[key] for key in edits.tensors if key in self._shard_of]
        home = edited[0] if edited else next(iter(self._parts))
        shard_of = {**self._shard_of, **{key: home for key in edits.tensors if key not in self._shard_of}}
        for name, part in self._parts.items():
            destination = folder / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            mine = {k: tensor for k, tensor in edits.tensors.items() if shard_of[k] == name}
            part.write(destination, Edits(mine, without=edits.without))
        shard_of = {key: name for key, name in shard_of.items() if key not in edits.without}
        index = {**self._index, "weight_map": shard_of, "metadata": self._metadata(edits)}
        (folder / self.path.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return [*self._parts, self.path.name]

    def _metadata(self, edits: Edits) -> dict[str, Any]:
        """The index's metadata with its totals moved by what the edits add and remove."""
        metadata = dict(self._index.get("metadata") or {})
        for key, new in [*edits.tensors.items(), *((key, None) for key in edits.without)]:
            old = self.infos.get(key)
            if isinstance(metadata.get("total_size"), int):
                metadata["total_size"] += (0 if new is None else new.nbytes) - (old.nbytes if old else 0)
            if isinstance(metadata.get("total_parameters"), int):
                metadata["total_parameters"] += (0 if new is None else new.numel()) - (
                    math.prod(old.shape) if old else 0
                )
        return metadata

    def close(self) -> None:
        for part in self._parts.values():
            part.close()


def inside(index: Path, name: object) -> Path:
    """The path of a shard beside its index. InputError if the name leads out of the folder."""
    shown = printable(index)
    if not isinstance(name, str) or not name or "\0" in name or max(map(len, name.split("/"))) > 200:
        raise InputError(f"{shown} names a shard {printable(name, 80)!r}, which is no file name.")
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise InputError(f"{shown} names a shard outside of its folder ({printable(name)}); it is refused.")
    path = index.parent / name
    if not stays_inside(path, index.parent):
        raise InputError(f"{shown} names a shard that links outside of its folder ({printable(name)}); it is refused.")
    if not path.is_file():
        raise InputError(f"{shown} names {printable(name)}, which is not there.", "Download the missing shard.")
    return path
