"""What cannot be a place of ours, each kind with its own sentence, before anything is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeVar

from toc_cli.errors import InputError, UsageError
from toc_cli.io.names import printable

Value = TypeVar("Value", str, Path, list[str])

TABLES = {
    ".csv": "comma-separated text",
    ".tsv": "tab-separated text",
    ".xlsx": "a spreadsheet",
    ".json": "JSON",
    ".jsonl": "JSON lines",
}
PAGE = r"(datasets/)?([\w.-]+/[\w.-]+)(?:/(?:resolve|blob|tree)/([^/?]+)(?:/([^?]+))?)?(?:\?.*)?/?"
"""What follows the host in an address of the hub: kind, name, revision, file."""
ARRAYS = (b"\x89HDF", b"\x93NUM")
"""How files of arrays begin, whatever they are called."""
CONVERT = "Save the rows as .npy, .npz, .h5 or .safetensors, such as numpy.save('feats.npy', rows)."


def place(value: Value) -> Value:
    """Typer's callback for a path, or several: the value itself, or an error that says what helps instead."""
    for text in value if isinstance(value, list) else [str(value)]:
        path = text.partition("=")[2] or text
        if path == "-":
            raise UsageError(
                "Standard input cannot be read here: files are read more than once.",
                "Write it to a file, and name that.",
            )
        scheme = path.partition(":")[0].lower()
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path) and scheme != "hf" and not Path(path).exists():
            helps = (
                "A hub name is written ORGANISATION/NAME, or hf://ORGANISATION/NAME."
                if scheme == "huggingface"
                else "Download it, and name the file."
            )
            typed = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])", r"\1://", path)  # a Path joins slashes
            if found := re.fullmatch(r"https?://(?:www\.)?huggingface\.co/" + PAGE, typed):
                kind, name, revision, file = found.groups()
                at = f"@{revision}" if revision and revision != "main" else ""
                helps = f"On the hub that is hf://{kind or ''}{name}{at}{'/' + file if file else ''}"
            raise UsageError(f"{printable(typed)} is an address ({scheme}:), and toc reads files.", helps)
        if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", path) and not Path(path).exists():
            raise UsageError(
                f"{printable(path)} is a path of Windows, and this system has no drives.",
                "Name it as this system does.",
            )
    return value


def features(value: Any) -> Any:  # typer takes list[str] here for a class on Python 3.10
    """`place` of several, and tables that are no arrays."""
    for text in place(value):
        path = Path(text.partition("=")[2] or text)
        if (kind := TABLES.get(path.suffix.lower())) and path.is_file() and _head(path) not in ARRAYS:
            raise InputError(f"{printable(path)} is {kind}, which toc does not read as features.", CONVERT)
    return value


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)
