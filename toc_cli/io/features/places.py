"""From what `--features` names to files: a file, here or on the hub, a folder, a glob, a list of files; each may be named."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toc_cli.errors import InputError, UsageError
from toc_cli.io.names import printable

FILE_LIMIT = 1_000_000
"""Files that one argument may stand for."""
MEDIA = frozenset({
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4", ".avi", ".mkv", ".webm",
})  # fmt: skip
"""Endings of what a model makes features of."""
LIST_LIMIT = 1 << 28
"""Bytes of a list file."""
HUB = "hf:"


@dataclass(frozen=True)
class Place:
    """One file, and how it was asked for."""

    name: str
    """Given as NAME=; "" without."""
    path: Path
    argument: str = ""
    """The folder, glob or list that stood for it; "" where the file was named itself."""


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key in which clip2 comes before clip10."""
    parts = re.split(r"([0-9]+)", text)
    return [(1, len(part.lstrip("0")), part.lstrip("0")) if at % 2 else (0, 0, part) for at, part in enumerate(parts)]


def places(argument: str | Path, suffixes: frozenset[str]) -> list[Place]:
    """The files of `[name=]path`, where path is a file, one on the hub (`hf://org/name/file`), a folder (its files that end
    in `suffixes`, folders below it too), a glob, or `@list` (a file with `[name=]path` on each line). Folders and globs in
    natural order, lists as they stand.

    UsageError for an argument that names nothing; InputError for a folder, a glob or a list without features.
    """
    name, text = named(argument)
    found = _places(name, text, suffixes)
    for place in found:
        if place.path.suffix.lower() in MEDIA:
            raise _media(place.path, "is a picture or sound")
    return found


def _media(path: Path, what: str) -> InputError:
    return InputError(
        f"{printable(path)} {what}, not features.", "Run a model over it: toc capture MODEL FOLDER -o feats.h5."
    )


def _places(name: str, text: str, suffixes: frozenset[str]) -> list[Place]:
    if text.startswith("@") and not os.path.exists(text):
        return list(_listed(name, Path(text[1:]), suffixes))
    if text.startswith(HUB):
        return [Place(name, local_file(text))]
    if os.path.isdir(text):
        return [Place(name, path, text) for path in _below(Path(text), suffixes)]
    if glob.has_magic(text) and not os.path.lexists(text):
        found = sorted(glob.iglob(text, recursive=True), key=natural)
        if not found:
            raise InputError(f"No file matches {printable(text)}.", "Quote the pattern, and see what `ls` finds.")
        return [Place(name, Path(path), text) for path in found if not os.path.isdir(path)]
    head, _, rest = text.partition("/")
    if head and rest and not os.path.lexists(head):
        raise InputError(
            f"{printable(text)} does not exist.",
            "If it is on the hub: hf://org/name/FILE, or hf://datasets/org/name/FILE.",
        )
    return [Place(name, Path(text))]


def local_file(text: str) -> Path:
    """The path of a file; of one on the hub where the cache has it, downloaded if need be."""
    if not text.startswith(HUB) or os.path.lexists(text):
        return Path(text)
    from toc_cli.io.hub import file_here

    return file_here(text)


def named(argument: str | Path) -> tuple[str, str]:
    """Name and path of `name=path`; no name where the whole is a file, or has no `=`."""
    text = str(argument)
    if not text:
        raise UsageError("--features names no file.", "Give FILE or NAME=FILE.")
    if isinstance(argument, Path) or "=" not in text or os.path.exists(text):
        return "", text
    name, _, rest = text.partition("=")
    if not name or not rest:
        raise UsageError(f"--features {printable(text)} is neither a file nor NAME=PATH.")
    return name, rest


def _below(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The feature files of a folder and the folders in it; hidden ones are none."""
    found: list[Path] = []
    other: set[str] = set()
    for at, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)
        for file in files:
            if not file.startswith("."):
                ending = Path(file).suffix.lower()
                if ending in suffixes:
                    found.append(Path(at) / file)
                else:
                    other.add(ending)
        if len(found) > FILE_LIMIT:
            raise InputError(f"{printable(folder)} holds more than {FILE_LIMIT:,} files.", "Name a folder in it.")
    if not found and other & MEDIA:
        raise _media(folder, "holds pictures or sound")
    if not found:
        seen = ", ".join(printable(ending, 20) for ending in sorted(other - {""})[:6])
        raise InputError(
            f"{printable(folder)} is a folder without features" + (f" (it holds {seen})." if seen else "."),
            f"Features are in {', '.join(sorted(suffixes))}.",
        )
    if any(path.suffix == ".scp" for path in found):  # it names the archives beside it
        found = [path for path in found if path.suffix != ".ark"]
    return sorted(found, key=lambda path: natural(str(path)))


def _listed(name: str, path: Path, suffixes: frozenset[str]) -> Iterator[Place]:
    """The files that the lines of a list name, from here or from the list's folder."""
    shown = printable(path)
    try:
        if path.stat().st_size > LIST_LIMIT:
            raise InputError(f"{shown} is too large for a list of files.")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{shown} is not a list of files: it is no text.") from None
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not entries:
        raise InputError(f"{shown} lists no file.", "Write [NAME=]PATH on each line.")
    for line in entries:
        own, text = named(line)
        if not os.path.lexists(text) and not os.path.isabs(text) and os.path.lexists(path.parent / text):
            text = str(path.parent / text)
        if os.path.isdir(text):
            raise InputError(f"{shown} lists the folder {printable(text)}.", "A list holds files.")
        yield Place(own or name, local_file(text), f"@{path}")
