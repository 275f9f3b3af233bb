"""Which pictures or sounds a folder, glob or list names, in natural order, with the classes of the ImageFolder convention."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from toc_cli.errors import InputError
from toc_cli.io.containers import feature_suffixes
from toc_cli.io.names import printable

Mediakind: TypeAlias = Literal["image", "sound"]

SUFFIXES: dict[str, Mediakind] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".oga", ".mp3", ".aiff", ".aif", ".opus"), "sound"),
}
GLANCE = 1000
"""Entries of a folder that are looked at to tell whether it holds pictures or sound."""


@dataclass(frozen=True)
class MediaFile:
    """One picture or sound."""

    path: Path
    name: str
    """Below the folder that was named, with forward slashes."""
    label: str | None = None
    """The folder it lies in, where every file lies in one folder below the one named; the class of an item of an array."""
    item: tuple[str, int] | None = None
    """Key and number, where it is an item of an array in the file."""


def holds_media(path: str | Path) -> bool:
    """Whether a folder, glob or list holds pictures or sound (and not arrays): a glance, nothing is opened."""
    try:
        for count, file in enumerate(_files(str(path))):
            if file.suffix.lower() in SUFFIXES:
                return True
            if count >= GLANCE:
                break
    except InputError:
        return False  # a list of features names its files by rules of its own, and is refused where it is read
    return False


def holds_arrays(path: str | Path) -> bool:
    """Whether a path is one file of arrays (.npy, .npz, HDF5, …) and not of media."""
    file = Path(path)
    return file.is_file() and file.suffix.lower() not in SUFFIXES and file.suffix.lower() in feature_suffixes()


def list_media(path: str | Path, *, limit: int | None = None) -> tuple[Mediakind, list[MediaFile]]:
    """Every picture or every sound that `path` (a folder, a glob, one file, or `@list.txt`) names, in natural order.

    Labels are the folders' names where each file lies in a folder below `path` (ImageFolder). `limit` takes that many,
    spread evenly. InputError where there is none, or both kinds.
    """
    text = str(path)
    files = [file for file in _files(text) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(
            f"{printable(text)} holds no pictures and no sound.",
            f"Give a folder, glob or @list of {' '.join(sorted(SUFFIXES))} files; arrays go to --features as they are.",
        )
    kinds = {SUFFIXES[file.suffix.lower()] for file in files}
    if len(kinds) > 1:
        raise InputError(f"{printable(text)} holds pictures and sound.", "Give one kind, as a glob: 'folder/*.png'.")
    top = Path(text) if os.path.isdir(text) else Path(os.path.commonpath([file.parent for file in files]))
    names = {file: os.path.relpath(file, top).replace(os.sep, "/") for file in files}
    files = sorted(files, key=lambda file: natural(names[file]))
    files = spread_over(files, limit)
    folders = {file: names[file].rpartition("/")[0] for file in files}
    labelled = all(folders.values()) and len(set(folders.values())) > 1
    return kinds.pop(), [MediaFile(file, names[file], folders[file] if labelled else None) for file in files]


Some = TypeVar("Some")


def spread_over(every: list[Some], limit: int | None) -> list[Some]:
    """So many of a list, spread evenly; all of them without a limit."""
    if limit is None or limit >= len(every):
        return every
    return [every[at * len(every) // limit] for at in range(limit)]


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts `clip2` before `clip10`."""
    return [
        (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _files(text: str) -> Iterator[Path]:
    """The regular files that a folder (and what lies below), glob, list or file names; hidden ones and links out left aside."""
    if text.startswith("@"):
        yield from _listed(Path(text[1:]))
    elif os.path.isdir(text):
        home = os.path.realpath(text)
        for folder, inner, names in os.walk(text):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                if not name.startswith(".") and file.is_file() and _below(file, home):
                    yield file
    elif os.path.isfile(text):
        yield Path(text)
    else:
        yield from (Path(found) for found in glob.iglob(text, recursive=True) if os.path.isfile(found))


def _below(file: Path, home: str) -> bool:
    return not file.is_symlink() or os.path.commonpath([os.path.realpath(file), home]) == home


def _listed(file: Path) -> Iterator[Path]:
    """The files of a list, one path a line, relative to the list."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list {printable(file)} cannot be read: {printable(error)}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        path = file.parent / line.strip()
        if not path.is_file():
            raise InputError(f"{printable(file)}, line {number}: there is no file {printable(line.strip())}.")
        yield path
