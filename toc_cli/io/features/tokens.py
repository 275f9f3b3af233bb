"""Tokens that came with the features: what the model itself chose, one row of them for each row of a modality.

Legend: N rows of a modality; C tokens of each row (levels, heads, or both).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toc_cli.errors import InputError
from toc_cli.io.features.grouping import Entry
from toc_cli.io.features.part import Part
from toc_cli.io.features.source import Opened, Source
from toc_cli.io.features.stream import Stream
from toc_cli.io.names import printable

SUFFIX = ".tokens"
ALONE = "tokens"
"""The name of the tokens beside an only array."""
BLOCK_ROWS = 1 << 20
WHOLE_LIMIT = 1 << 30
"""Bytes of an array without a second axis, which is read at once."""


@dataclass(frozen=True)
class Recorded:
    """The tokens of one modality, by the array of features that they belong to."""

    name: str
    sources: Mapping[tuple[str, str], Source]
    """By path and key of the features' array."""

    def trailing(self, stream: Stream) -> tuple[int, ...]:
        """The axes after the rows: (), (L,) or (L, H). InputError where the length, the type or the axes do not fit."""
        found = {self._trailing(part) for part in stream.parts}
        if len(found) > 1:
            shown = " and ".join(map(str, sorted(found)))
            raise InputError(
                f"{printable(self.name)}: parts hold unlike tokens, with axes {shown} after the rows.", HINT
            )
        return found.pop()

    def _trailing(self, part: Part) -> tuple[int, ...]:
        source = self._of(part)
        shown = f"{printable(part.path)}: {printable(self.name)} {source.shape}"
        if source.dtype.kind not in "iu":
            raise InputError(f"{shown} is {source.dtype}: tokens are whole numbers.", HINT)
        trailing = _after_rows(part, source.shape)
        if trailing is None:
            raise InputError(
                f"{shown} gives tokens for {source.shape[0] if source.shape else 0:,} rows; the features {part.source.shape} have "
                f"{part.whole_rows:,}.",
                _other_axis(part, source.shape) or HINT,
            )
        if len(trailing) > 2:
            raise InputError(f"{shown} has {len(trailing)} axes after the rows.", HINT)
        return trailing

    def _of(self, part: Part) -> Source:
        return self.sources[str(part.path), part.key]

    def fits(self, stream: Stream) -> bool:
        """Whether there are tokens for every row of a modality as it is read."""
        return all(_after_rows(part, self._of(part).shape) is not None for part in stream.parts)

    def ranges(self, stream: Stream, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
        """First row and tokens (n, *trailing) int64 of each run of rows of a modality, in blocks."""
        trailing = self.trailing(stream)
        with Opened(1 << 20) as opened:
            for start, stop in ranges:
                for at in range(start, stop, BLOCK_ROWS):
                    pieces = stream.pieces(at, min(at + BLOCK_ROWS, stop))
                    found = [self._rows(stream.parts[index], a, b, trailing, opened) for index, a, b, _ in pieces]
                    yield at, np.concatenate(found)

    def _rows(self, part: Part, first: int, end: int, trailing: tuple[int, ...], opened: Opened) -> np.ndarray:
        """Rows first … end of a part, (n, *trailing): elements in C order, read by rows of the last axis."""
        source, each = self._of(part), math.prod(trailing)
        last = source.shape[-1] if source.shape else 1
        if len(source.shape) < 2 and last * source.dtype.itemsize > WHOLE_LIMIT:
            raise InputError(f"{printable(self.name)} {source.shape} is too long for one axis.", "Save it as (N, 1).")
        a, b = (part.start + first) * each, (part.start + end) * each
        rows = (a // last, -(-b // last))
        block = np.empty((rows[1] - rows[0], last), source.dtype.newbyteorder("="))
        source.reader(max(0, len(source.shape) - 1), opened).read(*rows, block)
        flat = block.reshape(-1)[a - rows[0] * last : b - rows[0] * last]
        return flat.astype(np.int64).reshape(end - first, *trailing)


HINT = "Tokens stand beside their features as NAME.tokens: (N,), (N, levels) or (N, levels, heads) whole numbers, -1 for none."


def _after_rows(part: Part, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of tokens after those of the rows of an array; None where they do not stand for its rows."""
    lead = part.lead_shape
    if shape[: len(lead)] == lead:
        return shape[len(lead) :]
    return shape[1:] if shape[:1] == (part.whole_rows,) else None


def _other_axis(part: Part, shape: tuple[int, ...]) -> str:
    """What to say where the tokens fit another channel axis."""
    stored = part.source.shape
    for axis in range(1, len(stored)):
        if axis != part.axis and _after_rows(part.along(axis), shape) is not None:
            return f"They fit features whose dimensions lie along axis {axis}: --channel-axis {axis}."
    return ""


def split(entries: Sequence[Entry]) -> tuple[list[Entry], dict[tuple[str, str], Entry]]:
    """Features, and tokens by path and key of the array of features that they stand beside."""
    known = {(str(entry.place.path), entry.key): entry for entry in entries}
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        of = _belongs_to(entry, entries, known)
        if of is not None:
            found[of] = entry
    tokens = {id(entry) for entry in found.values()}
    return [entry for entry in entries if id(entry) not in tokens], found


def _belongs_to(
    entry: Entry, entries: Sequence[Entry], known: Mapping[tuple[str, str], Entry]
) -> tuple[str, str] | None:
    path, key = entry.place.path, entry.key
    if key.endswith(SUFFIX) and (str(path), key.removesuffix(SUFFIX)) in known:
        return str(path), key.removesuffix(SUFFIX)
    if not key and path.stem.endswith(SUFFIX):
        beside = path.with_name(path.stem.removesuffix(SUFFIX) + path.suffix)
        return (str(beside), "") if (str(beside), "") in known else None
    group, _, name = key.rpartition("/")
    if name == ALONE and entry.source.dtype.kind in "iu":
        near = [
            other.key
            for other in entries
            if other is not entry and other.place.path == path and other.key.rpartition("/")[0] == group
            and not other.key.rpartition("/")[2].startswith("label")
        ]  # fmt: skip
        return (str(path), near[0]) if len(near) == 1 else None
    return None


def recorded(stream: Stream, tokens: Mapping[tuple[str, str], Entry]) -> Recorded | None:
    """The tokens of a modality. InputError where some of its arrays have none."""
    keys = list(dict.fromkeys((str(part.path), part.key) for part in stream.parts))
    mine = {key: tokens[key] for key in keys if key in tokens}
    if not mine:
        return None
    if len(mine) < len(keys):
        bare = next(key for key in keys if key not in mine)
        raise InputError(
            f"{printable(stream.name)}: {len(keys) - len(mine)} of its {len(keys)} arrays have no tokens beside them, "
            f"as {printable(bare[0])} {printable(bare[1])}.",
            "Record the tokens of all of them, or of none.",
        )
    first = next(iter(mine.values()))
    name = first.key or first.place.path.stem
    return Recorded(name, {key: entry.source for key, entry in mine.items()})
