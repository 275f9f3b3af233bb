"""Whether the numbers of a baseline may stand beside those of a run, and what must be said about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from toc_cli.errors import InputError, UsageError
from toc_cli.report.metrics import METRICS, values
from toc_cli.report.reading import Run
from toc_cli.report.verdict import Values
from toc_cli.report.words import name as shown

ANYWAY = "Measure both on the same features, or pass --baseline-any to compare all the same."
ROWS = ("limit", "modalities", "channel_axis")
"""Options that choose which rows of the features are measured."""


def compared(run: Run, baseline: Run, anyway: bool) -> str:
    """What the baseline is to this run, in a sentence. UsageError where it was measured on other features, unless `anyway`."""
    own, other = shown(run.name), shown(baseline.name)
    if baseline.foreign:
        return f"{own} is compared with {other}, whose schema this toc does not read, on the numbers that it shares."
    differs = []
    mine, theirs = _inputs(run, "checkpoint"), _inputs(baseline, "checkpoint")
    if mine.keys() != theirs.keys():
        differs.append(f"of another checkpoint ({_names(theirs)}; this run: {_names(mine)})")
    mine, theirs = _inputs(run, "features"), _inputs(baseline, "features")
    if not (mine and theirs) and not anyway:
        silent = own if not mine else other
        raise UsageError(f"{silent} does not say which features it was measured on.", ANYWAY)
    rows = [name for name in ROWS if _option(run, name) != _option(baseline, name)]
    if mine.keys() != theirs.keys() or rows:
        what = f"other rows ({', '.join(rows)} differ)" if mine.keys() == theirs.keys() else "other features"
        said = f"measured on {what}: {_names(theirs)}; this run: {_names(mine)}"
        if not anyway:
            raise UsageError(f"The baseline {other} was {said}.", ANYWAY)
        differs.append(said)
    return (
        f"{own} is compared with {other}, "
        + (" and ".join(differs) if differs else "of the same checkpoint and features")
        + "."
        + _renamed(run, baseline)
    )


def _renamed(run: Run, baseline: Run) -> str:
    """Which codebooks are compared by their number, for want of one of the same key."""
    books = baseline.record["codebooks"]
    keys, by_id = {book["key"] for book in books}, {book["id"]: book["key"] for book in books}
    pairs = [
        f"{shown(book['key'])} with {shown(by_id[book['id']])}"
        for book in run.record["codebooks"]
        if book["key"] not in keys and book["id"] in by_id
    ]
    return f" By its number, not its key: {', '.join(pairs[:8])}." if pairs else ""


def counterpart(codebook: Mapping[str, Any], baseline: Run) -> Values:
    """The baseline's numbers of the codebook of the same key, else of the same id."""
    books = baseline.record["codebooks"]
    for trait in ("key", "id"):
        for book in books:
            if book[trait] == codebook[trait]:
                return _numbers(book, baseline)
    there = ", ".join(shown(book["key"]) for book in books[:8]) or "none"
    raise InputError(
        f"The baseline {shown(baseline.name)} has no codebook {shown(codebook['key'])} (it has: {there}).",
        "Name the record of the same checkpoint.",
    )


def _numbers(book: dict[str, Any], baseline: Run) -> Values:
    """Without those whose meaning schema 2 changed, where the baseline is of schema 1."""
    if baseline.foreign:
        after = book["after"]
        return {name: after[name] for name in METRICS if _is_number(after.get(name))}
    found = values(book, baseline.record)
    if baseline.record["schema_version"] > 1:
        return found
    changed = {"perplexity"} if book["levels"] * book["heads"] > 1 else set()
    if book["metric"] == "cosine":  # distances between unit vectors since
        changed |= {
            name for name in METRICS if "distortion" in name or name == "snr_db" or name.startswith("advantage")
        }
    return {name: value for name, value in found.items() if name.rpartition(".")[2] not in changed}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _inputs(run: Run, role: str) -> dict[str, str]:
    """Names by SHA-256."""
    return {entry["sha256"]: entry["name"] for entry in run.record["inputs"] if entry["role"] == role}


def _names(inputs: Mapping[str, str]) -> str:
    named = [f"{shown(name, 40)} {shown(digest[:8], 8)}" for digest, name in list(inputs.items())[:2]]
    return ", ".join(named) + (f" and {len(inputs) - 2} more" if len(inputs) > 2 else "") or "none"


def _option(run: Run, name: str) -> Any:
    value = run.record["options"].get(name)
    return sorted(map(str, value)) if isinstance(value, list) else value
