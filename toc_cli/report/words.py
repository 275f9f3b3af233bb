"""Numbers and names as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toc_cli.io.names import printable
from toc_cli.report.metrics import Unit

MINUS = "−"
NONE = "–"


def name(text: str, limit: int = 60) -> str:
    """A name out of a file on one line, without control characters, cut after `limit`."""
    return printable(text, limit)


def number(value: float | None, unit: Unit) -> str:
    """A value with its unit, rounded to what can be read; a dash where it is undefined."""
    if value is None:
        return NONE
    return _SPELL[unit](value).replace("-", MINUS)


def interval(bounds: Sequence[float] | None, unit: Unit) -> str:
    """`[low, high]`, the unit once where it is short."""
    if not bounds:
        return ""
    low, high = (number(bound, unit) for bound in bounds)
    for suffix in ("%", " pt", " dB"):
        if low.endswith(suffix) and high.endswith(suffix):
            low = low.removesuffix(suffix)
    return f"[{low}, {high}]"


def change(old: float | None, new: float | None, unit: Unit) -> str:
    """The way from `old` to `new`, signed: points for shares, the unit itself for the rest."""
    if old is None or new is None:
        return NONE
    difference = new - old
    if unit in ("share", "change", "points"):
        text = f"{_plain(100 * difference)} pt"
    else:
        text = number(difference, unit).replace(MINUS, "-")
    return (text if text.startswith("-") or difference == 0 else f"+{text.lstrip('+')}").replace("-", MINUS)


def raw(value: float | None, percent: bool = False) -> str:
    """A measured value or a bound as a check compares it, to six significant digits; a share in percent."""
    if value is None:
        return "undefined"
    return f"{100 * value:.6g}%" if percent else f"{value:.6g}"


def option(value: object) -> str:
    """A recorded option in words: lists as `a, b`, never as Python spells them."""
    if isinstance(value, list | tuple):
        return ", ".join(map(option, value)) or "none"
    return name(str(value).lower() if isinstance(value, bool) else str(value), 200)


def plural(count: int, noun: str) -> str:
    """`1 check`, `2 checks`, `1,024 codes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kept_of(book: Mapping[str, Any]) -> str:
    """`64 of 128`, or `64, 64, 32 (by level) of 128`: how many dimensions a codebook keeps."""
    sizes = book.get("kept_dims")
    kept = f"{book['kept_dim']:,}" if sizes is None else f"{', '.join(f'{size:,}' for size in sizes)} (by level)"
    return f"{kept} of {book['dim']:,}"


def keeps_all(book: Mapping[str, Any]) -> bool:
    """Whether a codebook keeps every dimension in every level."""
    return bool(min(book.get("kept_dims") or [book["kept_dim"]]) == book["dim"])


def keep_flag(book: Mapping[str, Any]) -> str:
    """What `--keep` says for the sizes that a record has."""
    return ",".join(map(str, book.get("kept_dims") or [book["kept_dim"]]))


def resampled(sample: Mapping[str, Any]) -> str:
    """What the 95 % intervals of a record resample."""
    unit, units = sample.get("unit", "rows"), sample.get("units")
    if unit == "rows" or units is None:
        return "bootstrap over blocks of contiguous rows"
    return f"bootstrap over {units:,} whole {name(str(unit))}" + (" (few)" if sample.get("few_units") else "")


def _plain(value: float) -> str:
    """Four significant digits at most, no exponent where it can be avoided."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return f"{value:.3g}"
    if size >= 3:
        return f"{value:,.0f}"
    return f"{value:.{3 - size if size >= 0 else 3 if size == -1 else 2 - size}f}"


def _share(value: float) -> str:
    percent = 100 * value
    close = 0 < abs(percent) < 1 or 99 < abs(percent) < 100
    return f"{percent:.2f}%" if close else f"{percent:.1f}%"


def _change(value: float) -> str:
    return f"{100 * value:+.2f}%" if abs(value) < 0.1 else f"{100 * value:+,.1f}%"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError


_SPELL = {
    "share": _share,
    "change": _change,
    "points": lambda value: f"{'+' if value > 0 else ''}{_plain(100 * value)} pt",
    "db": lambda value: f"{value:.2f} dB",
    "bits": lambda value: f"{_plain(value)} bits",
    "bytes": _bytes,
    "count": lambda value: f"{value:,.0f}",
    "number": _plain,
}
