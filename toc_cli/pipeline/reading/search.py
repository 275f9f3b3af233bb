"""Which other reading gives the recorded tokens: every choice that the file leaves open is tried, the fewest changes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np

from toc_cli.errors import TocError
from toc_cli.io.families.scaled import companions, is_small
from toc_cli.io.features import Recorded, Stream
from toc_cli.ops.linear import float64
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.reading.trial import Books, Sample, Trial, attempt, sample
from toc_cli.pipeline.source import Source, has_projection

ROWS = 256
"""Rows on which every reading is tried; those that agree are tried on SURE_ROWS."""
SURE_ROWS = 4096
PROMISING = 0.95
MOST_TRIALS = 400
MOST_CHANGES = 3


def agreeing(books: Books, said: Said, stream: Stream, recorded: Recorded) -> tuple[list[Trial], int]:
    """The readings that give the recorded tokens by the fewest changes, and how many were tried."""
    choices = open_choices(books, said, stream)
    samples: dict[tuple[int | None, int], Sample | None] = {}
    tried = 0
    for count in range(1, MOST_CHANGES + 1):
        found = []
        for other in changed(said, choices, count):
            if tried >= MOST_TRIALS:
                break
            tried += 1
            trial = _try(books, other, stream, recorded, samples, ROWS)
            if trial is not None and trial.least >= PROMISING:
                sure = _try(books, other, stream, recorded, samples, SURE_ROWS)
                if sure is not None and sure.agrees:
                    found.append(sure)
        if found:
            return distinct(found, books), tried
    return [], tried


def changed(said: Said, choices: dict[str, list[Any]], count: int) -> Iterator[Said]:
    """Every reading that differs from `said` in `count` of the choices."""
    for names in combinations(choices, count):
        for values in product(*(choices[name] for name in names)):
            flat: dict[str, Any] = {}
            for name, value in zip(names, values, strict=True):
                flat |= value if isinstance(value, dict) else {name: value}
            yield said.changed(**flat)


def _try(
    books: Books, said: Said, stream: Stream, recorded: Recorded,
    samples: dict[tuple[int | None, int], Sample | None], rows: int,
) -> Trial | None:  # fmt: skip
    at = (said.channel_axis, rows)
    if at not in samples:
        samples[at] = _sample(stream, recorded, *at)
    drawn, found = samples[at], books.of(said)
    return None if drawn is None or found is None else attempt(said, found, drawn)


def _sample(stream: Stream, recorded: Recorded, axis: int | None, rows: int) -> Sample | None:
    try:
        turned = stream if axis is None or axis % len(stream.shape) == stream.axis else stream.along(axis)
        return sample(turned, recorded, rows) if recorded.fits(turned) else None
    except TocError:
        return None


def open_choices(books: Books, said: Said, stream: Stream) -> dict[str, list[Any]]:
    """The other values of every choice that the file and the features allow."""
    found = books.of(said) or []
    choices: dict[str, list[Any]] = {
        "metric": ["euclidean", "cosine", "dot"],
        "rows": ["unit", "as-is"],
        "space": ["encoder", "codebook"] if any(has_projection(one.full) for one in found) else [],
        "channel_axis": [at for at in range(1, len(stream.shape)) if at != stream.axis],
        "stack": ["residual", "product", "independent"],
        "layout": layouts(books, found, said, stream),
        "order": orders(found),
        "copy": copies(books, found),
        "table": ["raw", "mean"],
        "scale": scales(books),
    }
    return {name: kept for name, values in choices.items() if (kept := [v for v in values if v != said.get(name)])}


def layouts(books: Books, found: Sequence[Source], said: Said, stream: Stream) -> list[dict[str, Any]]:
    """Other orders of the axes of tables that no family knows, and heads that share one table."""
    tables = {key: one for one in found for level in one.book.keys for key in level if key in books.ckpt.infos}
    result: list[dict[str, Any]] = []
    for key, one in tables.items():
        shape = books.ckpt.infos[key].shape
        named = {"codebook": key} if len(tables) > 1 and key else {}
        known = {2: ("KD", "DK"), 3: ("HKD", "LKD", "KHD", "KLD", "HDK", "LDK", "1DK", "DK1")}.get(len(shape), ())
        assumed = one.book.evidence == "assumed"
        result += [{**named, "layout": order} for order in known if assumed]
        for order in ("KD", "DK") if len(shape) == 2 else ("1KD",) if shape[:1] == (1,) else ():
            dim = shape[order.index("D")]
            if stream.width > dim and stream.width % dim == 0 and (assumed or order != "DK"):
                result.append({**named, "layout": f"{order},H={stream.width // dim}"})
    return result[:24]


def orders(found: Sequence[Source]) -> list[dict[str, Any]]:
    """The levels of one residual the other way round, where each has a table of its own."""
    for one in found:
        keys = [level[0] for level in one.book.keys]
        if one.book.evidence == "assumed" and one.book.heads == 1 and len(set(keys)) > 1:
            return [{"codebook": tuple(reversed(keys))}, {"codebook": tuple(sorted(keys))}]
    return []


def copies(books: Books, found: Sequence[Source]) -> list[dict[str, Any]]:
    """The other copies of a codebook, as a model beside its running average."""
    result = []
    for book in (one.book for one in found):
        for prefix in book.copies:
            keys = tuple(dict.fromkeys(prefix + key.removeprefix(book.root) for level in book.keys for key in level))
            result += [{"codebook": keys}] if all(key in books.ckpt.infos for key in keys) else []
    return result


def scales(books: Books) -> list[str]:
    """Scales that stand beside tables of small numbers, and none."""
    keys = [key for info in books.ckpt.infos.values() if is_small(info) for key in companions(books.ckpt, info)]
    return [*dict.fromkeys(keys), "none"][:6] if keys else []


def distinct(found: Sequence[Trial], books: Books) -> list[Trial]:
    """Readings that are not the same lookup in other words: among codes of one length all metrics and unit rows choose alike."""
    if len(found) < 2:
        return list(found)
    cosine = [each for each in found if each.said.get("metric") == "cosine"]
    if cosine and all(_one_length(books.of(each.said) or []) for each in found):
        return cosine[:1]
    kept: list[Trial] = []
    for each in found:
        same = replace(each, said=each.said.changed(rows=None))
        if not any(replace(other, said=other.said.changed(rows=None)).said == same.said for other in kept):
            kept.append(each)
    return kept


def _one_length(found: Sequence[Source]) -> bool:
    """Whether the codes of every level and head have one length each."""
    lengths = [np.linalg.norm(float64(codes), axis=1) for one in found for table in one.parts.tables for codes in table]
    return bool(lengths) and all(each.max() - each.min() <= 1e-3 * each.max() for each in lengths)
