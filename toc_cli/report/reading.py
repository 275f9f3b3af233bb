"""Run records from disk: found, parsed and validated before anything is drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from toc_cli.errors import InputError, UsageError
from toc_cli.report import schema
from toc_cli.report.words import name as shown

SUFFIX = ".toc.json"
MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Run:
    """One validated run record and the file name it goes by."""

    name: str
    record: dict[str, Any]
    foreign: bool = False
    """Of a schema that this toc does not read: only the ids, keys and numbers of its codebooks are known to be there."""


def locate(paths: Sequence[Path], baseline: Path | None = None) -> list[Path]:
    """The named records, or the newest `*.toc.json` of the current folder, other than the baseline, where none is named.

    UsageError where a named record is the baseline itself: against itself every relative check holds.
    """
    if not paths:
        return [newest(Path(), baseline)]
    for path in paths:
        if _same(path, baseline):
            raise UsageError(
                f"{shown(str(path), 200)} is its own baseline: it would be compared with itself.",
                "Name the record of an earlier run with --baseline.",
            )
    return list(paths)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Several records; those of one file name go by their whole paths."""
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    return [
        replace(run, name=str(path)) if names.count(run.name) > 1 else run
        for run, path in zip(runs, paths, strict=True)
    ]


def read_run(path: Path, *, foreign: bool = False) -> Run:
    """Read and validate one record: InputError where it is unreadable, no JSON, or not a run record.

    `foreign`: one of another schema will do, where its codebooks have ids, keys and numbers.
    """
    label = shown(str(path), 200)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{label} has {path.stat().st_size:,} bytes; a run record has at most {MOST_BYTES:,}.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = "Name a record that toc optimize wrote." if path.is_dir() or not path.exists() else ""
        raise InputError(f"{label} cannot be read: {error.strerror}.", hint) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{label} is not text.", f"Name the {SUFFIX} record, not the artefact.") from error
    try:
        record = json.loads(text, parse_constant=_refuse, object_pairs_hook=_distinct)
        schema.validate(record)
    except InputError as error:
        if foreign and _has_numbers(record):
            return Run(path.name, record, foreign=True)
        raise InputError(f"{label}: {error.what}", "toc optimize writes such a record.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label} is not JSON: {str(error)[:200]}.", "toc optimize writes such a record.") from error
    return Run(path.name, record)


def newest(folder: Path, baseline: Path | None = None) -> Path:
    """The record that was written last in a folder, other than the baseline; UsageError where there is none."""
    found = [path for path in folder.glob(f"*{SUFFIX}") if path.is_file() and not _same(path, baseline)]
    if not found:
        other = "" if baseline is None else " other than the baseline"
        raise UsageError(
            f"No *{SUFFIX}{other} in {shown(str(folder.resolve()), 200)}.", "Name a record, or run toc optimize first."
        )
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and other.exists() and path.samefile(other)


def _has_numbers(record: Any) -> bool:
    books = record.get("codebooks") if isinstance(record, dict) else None
    return isinstance(books, list) and all(
        isinstance(book, dict)
        and isinstance(book.get("key"), str)
        and "id" in book
        and isinstance(book.get("after"), dict)
        for book in books
    )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has {shown(twice, 60)!r} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
