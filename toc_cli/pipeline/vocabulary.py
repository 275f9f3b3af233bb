"""`--vocab`: the rows of a language model that stand for codes, cut along with `--codes`.

Legend: V rows of the table, L levels, H heads, K codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from toc_cli.errors import InputError, UsageError
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint, Edits
from toc_cli.io.families import moments
from toc_cli.io.families.emit import keep_sharing
from toc_cli.io.names import printable
from toc_cli.ops.vocabulary import Span, cut_rows, new_rows
from toc_cli.pipeline.source import Source

_PLACE = re.compile(r"(?P<key>.+?)(?:@(?P<offset>\d{1,18}))?(?:#(?P<level>\d{1,9}))?", re.ASCII | re.DOTALL)
SIZES, IDS = re.compile(r"vocab_size\Z"), re.compile(r"_token_ids?\Z")
"""Names of config values that count the rows, and that name one."""


@dataclass(frozen=True)
class Rows:
    """What one `--vocab` says: `[FILE:]KEY[@OFFSET][#LEVEL]`."""

    key: str
    offset: int = 0
    """The row of the first code."""
    level: int | None = None
    """The one level whose codes stand there; None: those of all, one after the other."""


def parse_vocab(texts: Sequence[str]) -> tuple[Path | None, tuple[Rows, ...]]:
    """The file of the language model (None: the checkpoint itself) and the rows that stand for codes. UsageError for several files."""
    files: list[Path | None] = []
    rows = []
    for text in texts:
        ends = [at for at, letter in enumerate(text) if letter == ":" and Path(text[:at]).exists()]
        files.append(Path(text[: ends[-1]]) if ends else None)
        found = _PLACE.fullmatch(text[ends[-1] + 1 :] if ends else text)
        if found is None:
            raise UsageError(f"--vocab {text!r} names no tensor.", "Use [FILE:]KEY[@OFFSET][#LEVEL].")
        level = found["level"]
        rows.append(Rows(found["key"], int(found["offset"] or 0), None if level is None else int(level)))
    if len(set(files)) > 1:
        raise UsageError("--vocab names tables of several files.", "Give those of one language model.")
    return files[0] if files else None, tuple(rows)


@dataclass(frozen=True)
class Vocabulary:
    """The tables of a language model whose rows follow the codes."""

    model: Checkpoint
    rows: tuple[Rows, ...]
    inside: bool
    """Whether the language model is in the checkpoint itself: then the sliced form holds its rows."""

    def spans(self, source: Source) -> dict[str, list[Span]]:
        """Per key the spans of rows, ascending."""
        found: dict[str, list[Span]] = {}
        for rows in self.rows:
            found.setdefault(rows.key, []).extend(_spans(rows, source))
        return {key: sorted(spans, key=lambda span: span.start) for key, spans in found.items()}

    def edits(self, source: Source) -> Edits:
        """The cut tables, and the counts of rows and ids of tokens in the config that follow them."""
        spans = self.spans(source)
        tensors = {key: cut_rows(self.model.get(key), own) for key, own in spans.items()}
        return Edits(keep_sharing(self.model, tensors, Edits()), dict(self._config(spans)))

    def _config(self, spans: Mapping[str, Sequence[Span]]) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Values of the config that count the rows of a table or name one of them, by path."""
        for key, own in spans.items():
            height = self.model.infos[key].shape[0]
            places = new_rows(height, own)
            after = int(places.max()) + 1
            for path, value in _leaves(self.model.config or {}):
                if SIZES.search(path[-1]) and value == height:
                    yield path, after
                elif IDS.search(path[-1]) and (moved := _moved(value, places)) != value:
                    yield path, moved

    def about(self, source: Source) -> dict[str, Any]:
        """For the record: every table before and after, and which share of the user's tokens now means something else."""
        tables = []
        for key, own in self.spans(source).items():
            height = self.model.infos[key].shape[0]
            places = new_rows(height, own)
            tables.append({
                "key": key,
                "rows": [height, int(places.max()) + 1],
                "dropped": sum(int((span.new < 0).sum()) for span in own),
                "merged": sum(len(members) for span in own for _, members in span.mixed()),
                "moved": int(((places >= 0) & (places != np.arange(height))).sum()),
            })  # fmt: skip
        assert source.codes is not None
        return {
            "file": None if self.inside else self.model.path.name,
            "tables": tables,
            "changed_tokens": source.codes.about["changed_share"],
            "config": {".".join(path): value for path, value in self._config(self.spans(source))},
        }

    def left_alone(self) -> list[str]:
        """Keys of as many rows as a cut table that nobody named and that share no storage with it: an output layer, a bias."""
        infos = self.model.infos
        named = {rows.key for rows in self.rows}
        heights, stored = {infos[key].shape[0] for key in named}, {infos[key].storage for key in named} - {None}
        return [
            key
            for key, info in infos.items()
            if info.shape and info.shape[0] in heights and key not in named and info.storage not in stored
        ]


def open_vocabulary(ckpt: Checkpoint, sources: Sequence[Source], texts: Sequence[str]) -> Vocabulary:
    """The language model of `--vocab`, its names and shapes held against the codebook.

    Raises:
        UsageError: several codebooks, rows that do not fit, a file that cannot be written, one with optimizer state.
        InputError: no such tensor, or one of whole numbers.
    """
    file, rows = parse_vocab(texts)
    if len(sources) != 1:
        raise UsageError(f"--vocab: {len(sources)} codebooks are cut.", "Pick the one of these tokens: --codebook KEY.")
    inside = file is None or (ckpt.path.exists() and file.samefile(ckpt.path))
    assert inside or file is not None
    model = ckpt if inside or file is None else open_checkpoint(file)
    if _names_its_codes(model.config):
        raise UsageError(
            f"--vocab: {printable(model.path.name)} gives its codes ids by a vocabulary_map of its own (as Chameleon does), not one"
            " after another.",
            "Leave --vocab out; toc remap rewrites tokens.",
        )
    for each in rows:
        info = model.require(each.key)
        if not info.is_floating or not info.shape:
            raise InputError(
                f"--vocab: {printable(each.key)} is {info.stored} of shape {info.shape}, no table with a row per token.",
                "Name the embedding and the output layer.",
            )
        if each.level is not None and each.level >= len(sources[0].full.levels):
            raise UsageError(
                f"--vocab: #{each.level} is no level of {printable(sources[0].book.shown)}.",
                f"Use #0 to #{len(sources[0].full.levels) - 1}.",
            )
    _refuse_rows(model, rows, sources[0])
    model.require_writable()
    state = moments.of_parameters(model, {each.key for each in rows})
    if state.unsure or any(state.found.values()):
        raise UsageError(
            f"--vocab: {printable(model.path.name)} holds optimizer state, which would no longer fit its tables.",
            "Give the weights alone.",
        )
    return Vocabulary(model, rows, inside)


def _names_its_codes(config: object) -> bool:
    """Whether a config, or one inside it, maps codes to tokens by name."""
    return isinstance(config, dict) and ("vocabulary_map" in config or any(map(_names_its_codes, config.values())))


def vocab_warnings(vocabulary: Vocabulary, source: Source) -> list[dict[str, Any]]:
    """What the owner of the language model must know: tokens of another meaning, tables that nobody named, ids that moved."""
    about, name = vocabulary.about(source), printable(vocabulary.model.path.name, 120)
    found = []
    if about["changed_tokens"]:
        merged = sum(table["merged"] for table in about["tables"])
        found.append(
            f"{name}: {about['changed_tokens']:.2%} of the tokens mean something else, of codes that merged: {merged:,} rows became "
            "means by usage, which the model has not been trained with."
        )
    if others := vocabulary.left_alone():
        shown = ", ".join(printable(key, 80) for key in others[:4]) + (" …" if len(others) > 4 else "")
        found.append(
            f"{name}: as many rows as a cut table, and left alone: {shown}. --vocab names those that are tokens too."
        )
    last = max(span.end for spans in vocabulary.spans(source).values() for span in spans)
    if any(last < table["rows"][0] for table in about["tables"]):
        found.append(
            f"{name}: tokens after the codes have new ids as well (config.json follows where it names them): tokenizers and "
            "generation_config.json must be told."
        )
    return [{"id": "vocab", "codebook": source.id, "text": text} for text in found]


def _refuse_rows(model: Checkpoint, rows: Sequence[Rows], source: Source) -> None:
    """UsageError where the codes, before any goes, do not fit into the tables, or stand in one place twice."""
    taken: dict[str, list[tuple[int, int]]] = {}
    counts = [source.full.heads * level.codes.shape[1] for level in source.full.levels]
    for each in rows:
        own = counts if each.level is None else [counts[each.level]]
        end, height = each.offset + sum(own), model.infos[each.key].shape[0]
        if end > height:
            raise UsageError(
                f"--vocab: the codes would end at row {end:,} of {printable(each.key)}, which has {height:,}.",
                "Say where code 0 stands: KEY@OFFSET; KEY@OFFSET#LEVEL where a tensor holds one level.",
            )
        taken.setdefault(each.key, []).append((each.offset, end))
    for key, spans in taken.items():
        spans.sort()
        if any(one[1] > other[0] for one, other in pairwise(spans)):
            raise UsageError(f"--vocab: two spans of codes overlap in {printable(key)}.", "Give each its own @OFFSET.")


def _spans(rows: Rows, source: Source) -> Iterator[Span]:
    assert source.codes is not None
    start = rows.offset
    levels = range(len(source.codes.cut.maps)) if rows.level is None else (rows.level,)
    for level in levels:
        for head, new in enumerate(source.codes.cut.maps[level]):
            yield Span(start, new, source.codes.usage[level][head])
            start += len(new)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, str(name)))
    elif path:
        yield path, value


def _moved(value: Any, places: np.ndarray) -> Any:
    """A token's id, or a list of them, after the cut; anything else as it is."""
    if isinstance(value, list):
        return [_moved(each, places) for each in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return int(places[value]) if whole and 0 <= value < len(places) and places[value] >= 0 else value
