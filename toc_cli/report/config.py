"""Where bounds come from: `[tool.toc.checks]` of a TOML file. A gate never passes because a table was misspelt or empty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any

from toc_cli.errors import UsageError
from toc_cli.io.settings import TABLES, read_toml, standing
from toc_cli.report.checks import GRAMMAR, Check, Level, bounded_check
from toc_cli.report.words import name as shown

EXAMPLE = 'Write lines such as token_agreement = ["error", {min = "95%"}] under [tool.toc.checks].'

MEANT = "tool.toc.checks"
NEAR = 0.84
"""From this likeness of a table's name on (`tool.checks`, `tool.toc_cli.checks`), the gate's own is meant."""


def from_config(path: Path | None) -> list[Check]:
    """The checks of a TOML file; of `toc.toml` or `pyproject.toml` here where none is named.

    UsageError where a named file holds none, both files here hold some, or a table is misspelt, empty or cannot be read.
    """
    if path is not None:
        found = _checks(read_toml(path), path)
        if found is None:
            raise UsageError(f"No checks in {shown(str(path), 200)}.", EXAMPLE)
        return found
    here = {str(path): _checks(read_toml(path), path) for path in standing()}
    holding = {name: checks for name, checks in here.items() if checks is not None}
    if len(holding) > 1:
        raise UsageError(
            f"{' and '.join(holding)} here both have [tool.toc.checks].", "Keep one, or name one with --config."
        )
    return next(iter(holding.values()), [])


def _checks(config: Mapping[str, Any], path: Path) -> list[Check] | None:
    """`metric = ["error", {min = 0.95, max = "baseline * 1.05"}]`, one check per bound; None without the table."""
    where = shown(str(path), 200)
    for wrong in ("checks", "check", "toc"):
        if wrong in config:
            raise UsageError(f"{where} has a table [{wrong}], which nothing reads.", "Call it [tool.toc.checks].")
    _misspelt(config, where)
    table: Any = config
    for depth, part in enumerate(("tool", "toc", "checks")):
        if not isinstance(table, Mapping):
            raise UsageError(f"{where}: {'.'.join(('tool', 'toc')[:depth])} is no table.", EXAMPLE)
        if depth == 2 and (strange := [key for key in table if key not in TABLES]):
            close = get_close_matches(strange[0], TABLES, n=1)
            hint = f"Did you mean [tool.toc.{close[0]}]?" if close else f"There are: {', '.join(TABLES)}."
            raise UsageError(f"{where} has [tool.toc.{shown(strange[0])}], which nothing reads.", hint)
        if part not in table:
            return None
        table = table[part]
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: tool.toc.checks is no table.", EXAMPLE)
    found = [check for metric, entry in _flat(table) for check in _entry(metric, entry, where)]
    if not found:
        raise UsageError(f"No checks in {where}: its [tool.toc.checks] is empty.", EXAMPLE)
    return found


def _misspelt(config: Mapping[str, Any], where: str) -> None:
    """UsageError for `[tools.toc.checks]`, `[tool.toc_cli.checks]`, `[tool.checks]` and checks under no table at all."""
    for name, table in _tables(config):
        near = SequenceMatcher(None, name.casefold(), MEANT).ratio() >= NEAR
        if name != MEANT and near and any(_is_check(entry) for _, entry in _flat(table)):
            raise UsageError(f"{where} has [{shown(name)}], which nothing reads.", f"Call it [{MEANT}].")
    for name, entry in config.items():
        if _is_check(entry):
            raise UsageError(f"{where} has the check {shown(name)} in no table.", f"Write [{MEANT}] above it.")


def _is_check(entry: Any) -> bool:
    """Whether it is written as a check is: other tools' tables of such a name hold other things."""
    return isinstance(entry, list) and len(entry) == 2 and entry[0] in ("error", "warn")


def _tables(config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tables down to the third level, by their dotted names; a part that holds a dot stands in quotes."""
    for name, inner in config.items():
        parts = (*above, f'"{name}"' if "." in name else name)
        if isinstance(inner, Mapping):
            yield ".".join(parts), inner
            if len(parts) < 3:
                yield from _tables(inner, parts)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`audio.token_agreement = …` without quotes is a table in TOML: join its names again."""
    for name, entry in table.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def _entry(metric: str, entry: Any, where: str) -> list[Check]:
    match entry:
        case [("error" | "warn") as level, {**bounds}] if bounds and set(bounds) <= {"min", "max"}:
            return [_check(metric, str(side), bound, level, where) for side, bound in bounds.items()]
    raise UsageError(
        f"{where}: the check {shown(metric)} cannot be read.",
        'Write it as ["error", {min = 0.95}] or ["warn", {max = "baseline * 1.05"}].',
    )


def _check(metric: str, side: str, bound: Any, level: Level, where: str) -> Check:
    if isinstance(bound, bool) or not isinstance(bound, (int, float, str)):
        raise UsageError(f"{where}: the bound {side} of {shown(metric)} is {shown(repr(bound))}.", f"Write {GRAMMAR}.")
    return bounded_check(metric, ">=" if side == "min" else "<=", str(bound), level, f"{where} [tool.toc.checks]")
