"""`config.json`: read from beside the weights, patched by path."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toc_cli.errors import InputError
from toc_cli.io.atomic import atomic_file
from toc_cli.io.names import printable

SIZE_LIMIT = 1 << 26
"""Bytes; a config or an index is far below, and a larger one is no config."""
DEPTH_LIMIT = 64
"""Objects inside of one another; real configs have about five."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object out of a small file. InputError if it is anything else."""
    shown = printable(path)
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(f"{shown} is too large for a table of settings ({path.stat().st_size:,} bytes).")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{shown} does not exist.") from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown} is not valid JSON: {printable(error)}.") from None
    if not isinstance(data, dict):
        raise InputError(f"{shown} is not a JSON object.")
    _check_values(data, shown)
    return data


def _check_values(data: dict[str, Any], shown: str) -> None:
    """InputError for what cannot be copied or written again: deep nesting, text that is no Unicode, numbers without end."""
    level: list[Any] = [data]
    for _ in range(DEPTH_LIMIT):
        inner: list[Any] = []
        for node in level:
            for part in (*node, *node.values()) if isinstance(node, dict) else node:
                if isinstance(part, (dict, list)):
                    inner.append(part)
                elif isinstance(part, str) and not part.isascii() and any("\ud800" <= c <= "\udfff" for c in part):
                    raise InputError(f"{shown} holds text that is no Unicode: {printable(part, 40)}.")
                elif type(part) is int and part.bit_length() > 1024:
                    raise InputError(f"{shown} holds a number of {part.bit_length():,} bits.")
        if not inner:
            return
        level = inner
    raise InputError(f"{shown} nests its values more than {DEPTH_LIMIT} deep.")


def config_beside(weights: Path) -> tuple[dict[str, Any] | None, tuple[Path, ...]]:
    """The `config.json` beside a weights file and its path; a broken one beside a lone file says nothing about it."""
    try:
        config = config_in(weights.parent)
    except InputError:
        config = None
    return config, () if config is None else (weights.parent / "config.json",)


def config_in(folder: Path) -> dict[str, Any] | None:
    """The `config.json` of a folder, None without one. InputError if it is broken, or a link out of the folder."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    if not stays_inside(path, folder):
        raise InputError(f"{printable(path)} links outside of its folder; it is refused.")
    return read_json(path)


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether links keep `path` in `folder`, or in the `blobs` of a Hugging Face cache, where snapshots link to."""
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"
    return real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(blobs))


def patched(config: Mapping[str, Any] | None, edits: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A copy of `config` with the values of `edits` set at their paths."""
    result: dict[str, Any] = copy.deepcopy(dict(config or {}))
    for path, value in edits.items():
        at = result
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = value
    return result


def write_config(target: Path, config: Mapping[str, Any]) -> None:
    """Write a config in the layout of Hugging Face libraries: two spaces, a final newline."""
    target.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_config_beside(
    target: Path, config: Mapping[str, Any] | None, edits: Mapping[tuple[str, ...], Any]
) -> list[Path]:
    """The patched config of a lone weights file: `model.sliced.safetensors` gets `model.sliced.config.json`."""
    if not edits:
        return []
    beside = target.with_name(f"{target.stem}.config.json")
    with atomic_file(beside) as temporary:
        write_config(temporary, patched(config, edits))
    return [beside]
