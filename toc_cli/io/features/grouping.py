"""Which arrays are parts of one modality, and what it is called.

Names that differ only in digits are parts of one stream, as are one group or dataset per clip, the files of a folder, a
glob or a list, and whatever is given one name; differently worded names are modalities.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from toc_cli.errors import UsageError
from toc_cli.io.features.places import Place, natural
from toc_cli.io.features.source import Source
from toc_cli.io.names import printable

MANY = 16
"""Differently worded names side by side that may be modalities; more are one group or dataset per clip."""
ANY = "*"
DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Entry:
    """An array and where it was found."""

    place: Place
    key: str
    source: Source


@dataclass(frozen=True)
class Group:
    """The entries of one modality in order, its name, and what tells each from the others."""

    name: str
    entries: tuple[Entry, ...]
    shape: tuple[str, ...]
    """What their keys have in common."""

    @property
    def ids(self) -> tuple[tuple[str, ...], ...]:
        """Per entry the numbers and names that differ among them; labels of the same ids belong to it."""
        return _ids(self.entries, self.shape)


def pattern(text: str) -> str:
    """A name without its numbers."""
    return DIGITS.sub("#", text)


def groups(entries: Sequence[Entry]) -> list[Group]:
    """The modalities, in the order of their first arrays. UsageError for a file given twice, and for names that clash."""
    sets: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        sets[_together(entry.place)].append(entry)
    drafts = [draft for members in sets.values() for draft in _drafts(members)]
    names = [draft.name for draft in drafts]
    found = [draft.named(names.count(draft.name) > 1) for draft in drafts]
    for at, group in enumerate(found):
        if any(group.name == other.name for other in found[:at]):
            raise UsageError(
                f"Two feature arrays would be called {printable(group.name)}.", "Name them: --features NAME=PATH."
            )
    return found


def _together(place: Place) -> tuple[str, str]:
    """What files that may be parts of one stream have in common."""
    if place.name:
        return "name", place.name
    return ("argument", place.argument) if place.argument else ("path", pattern(str(place.path)))


@dataclass(frozen=True)
class _Draft:
    """A group before clashing names are told apart by their files."""

    name: str
    prefix: str
    group: Group

    def named(self, clashes: bool) -> Group:
        own = f"{self.prefix}/{self.name}" if clashes and self.prefix else self.name
        return replace(self.group, name=own)


def _drafts(members: Sequence[Entry]) -> list[_Draft]:
    given = members[0].place.name
    listed = members[0].place.argument.startswith("@")
    of_file = _file_patterns(members)
    of_key = _key_patterns([tuple(entry.key.split("/")) for entry in members])
    parted: dict[tuple[bool, str, tuple[str, ...]], list[Entry]] = defaultdict(list)
    for entry in members:
        numbers = entry.source.dtype.kind == "f"
        parted[numbers, of_file(entry), of_key(tuple(entry.key.split("/")))].append(entry)
    drafts = []
    for (_, _, shape), part in parted.items():
        ordered = part if listed else _sorted(part)
        seen = {(entry.place.path, entry.key) for entry in ordered}
        if len(seen) < len(ordered):
            raise UsageError(
                f"Two feature arrays would be called {printable(given or ordered[0].key or ordered[0].place.path.stem)}: "
                f"{printable(ordered[0].place.path)} is given twice.",
                "Name them: --features NAME=PATH.",
            )
        key = _key_name(ordered, shape)
        stem = _file_name(ordered)
        if given:
            name = given if len(parted) == 1 else f"{given}/{key or stem}"
        else:
            name = key or stem
        group = Group(name, tuple(ordered), shape)
        drafts.append(_Draft(name, "" if given or name == stem else stem, group))
    return drafts


def _sorted(entries: Sequence[Entry]) -> list[Entry]:
    """By file, then by key, in natural order."""
    files = {path: natural(str(path)) for path in {entry.place.path for entry in entries}}
    return sorted(entries, key=lambda entry: (files[entry.place.path], natural(entry.key)))


def _file_patterns(members: Sequence[Entry]) -> Callable[[Entry], str]:
    """Tells the files of one argument apart by their words where the same clips come under each: clip1_audio.npy,
    clip1_video.npy, clip2_audio.npy, … are two modalities; cat.npy, dog.npy are two clips."""
    clips: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    texts = {path: str(path) for path in {entry.place.path for entry in members}}
    for name in texts.values():
        clips[pattern(name)].add(tuple(DIGITS.findall(name)))
    first, *others = clips.values()
    named = bool(members[0].place.name)
    if not named and others and len(clips) <= MANY and len(first) > 1 and all(other == first for other in others):
        return lambda entry: pattern(texts[entry.place.path])
    return lambda entry: ""


def _key_patterns(keys: Sequence[tuple[str, ...]]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """Maps a key (its groups, then its name) to what it has in common with its like: digits become #, and names of which more
    than MANY stand side by side become *."""
    many: set[tuple[str, ...]] = set()

    def mark(prefix: tuple[str, ...], tails: Iterable[tuple[str, ...]]) -> None:
        children: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for tail in tails:
            if tail:
                children[pattern(tail[0])].add(tail[1:])
        if len(children) > MANY:
            many.add(prefix)
            children = defaultdict(set, {ANY: set().union(*children.values())})
        for name, below in children.items():
            mark((*prefix, name), below)

    mark((), {tuple(pattern(name) for name in key) for key in keys})

    def mapped(key: tuple[str, ...]) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for name in key:
            found = (*found, ANY if found in many else pattern(name))
        return found

    return mapped


def _varying(columns: Sequence[Sequence[str]]) -> list[bool]:
    """Which places of rows of equal length do not hold the same text everywhere."""
    return [len(set(column)) > 1 for column in zip(*columns, strict=True)]


def _key_name(entries: Sequence[Entry], shape: tuple[str, ...]) -> str:
    """The groups that all keys share, else the words of the last name that has any; the whole key of a lone array."""
    keys = [entry.key.split("/") for entry in entries]
    varies = _varying(keys)
    same = [part for part, moves in zip(keys[0], varies, strict=True) if not moves]
    if any(same):
        return "/".join(same)
    for part in reversed(shape):
        if words := _words(part):
            return words
    return ""


def _words(text: str) -> str:
    """A pattern without the marks of its numbers."""
    return re.sub(r"[#*]+", "", text).strip("-_. ")


def _file_name(entries: Sequence[Entry]) -> str:
    """The stem of a lone file; of several the words that they share, else the folder that holds them."""
    paths = list(dict.fromkeys(entry.place.path for entry in entries))
    stems = [path.stem for path in paths]
    if len(paths) == 1 or len(set(stems)) == 1:
        return stems[0]
    patterns = {pattern(stem) for stem in stems}
    if len(patterns) == 1 and (words := _words(patterns.pop())):
        return words
    folder = os.path.basename(os.path.commonpath([path.resolve().parent for path in paths]))
    return folder or "features"


def _ids(entries: Sequence[Entry], shape: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Per entry what varies in its path and key, each kind of variation once."""
    rows = []
    paths = {entry.place.path: str(entry.place.path.with_suffix("")) for entry in entries}
    like_files = len({pattern(path) for path in paths.values()}) == 1
    of_file = {path: _numbers(text) if like_files else [text] for path, text in paths.items()}
    for entry in entries:
        row = list(of_file[entry.place.path])
        for part, like in zip(entry.key.split("/"), shape, strict=True):
            row += [part] if like == ANY else _numbers(part)
        rows.append(row)
    columns = dict.fromkeys(column for column in zip(*rows, strict=True) if len(set(column)) > 1)
    return tuple(zip(*columns, strict=True)) if columns else tuple(() for _ in entries)


def _numbers(text: str) -> list[str]:
    return [number.lstrip("0") for number in DIGITS.findall(text)]
