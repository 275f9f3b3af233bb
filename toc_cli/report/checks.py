"""The gate: what a check says, where checks come from, and whether they hold."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from toc_cli.errors import InputError, UsageError
from toc_cli.report.words import name as shown
from toc_cli.report.words import raw

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Level = Literal["error", "warn"]
CONFIG_FILES = ("toc.toml", "pyproject.toml")
GRAMMAR = "NAME >= NUMBER, or NAME <= baseline * 1.05 (also >, <, == and baseline + or - NUMBER)"

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?"
_BOUND = re.compile(rf"\s*(?:(?P<number>{_NUMBER})|baseline(?:\s*(?P<sign>[-+*])\s*(?P<by>{_NUMBER}))?)\s*")
_CHECK = re.compile(rf"\s*(?P<metric>\S.*?)\s*(?P<operator>>=|<=|==|>|<)(?P<bound>{_BOUND.pattern})", re.DOTALL)
_HOLDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


@dataclass(frozen=True)
class Bound:
    """A number, or the baseline's value with a number added, taken away or multiplied."""

    number: float
    sign: Literal["", "+", "-", "*"] = ""
    """Empty: absolute."""

    def value(self, baseline: float | None) -> float | None:
        """The bound as a number; None where it needs a baseline's value and there is none."""
        if not self.sign:
            return self.number
        if baseline is None:
            return None
        return {"+": operator.add, "-": operator.sub, "*": operator.mul}[self.sign](baseline, self.number)


@dataclass(frozen=True)
class Check:
    """One line of the gate."""

    metric: str
    operator: str
    bound: Bound
    level: Level
    expression: str
    """As the user wrote it."""


@dataclass(frozen=True)
class Outcome:
    """A check on one codebook."""

    check: Check
    run: str
    codebook: int
    key: str
    status: Literal["passed", "failed", "skipped"]
    measured: float | None
    bound: float | None
    reason: str = ""
    """Why it was skipped, or why an undefined number fails."""

    def sentence(self) -> str:
        """What was measured against what was asked."""
        asked = self.check.expression if self.bound is None else f"{self.check.operator} {raw(self.bound)}"
        relative = f" ({self.check.expression})" if self.check.bound.sign and self.bound is not None else ""
        text = f"{shown(self.check.metric, 120)} is {raw(self.measured)}; asked: {shown(asked + relative, 200)}"
        return f"{text}: {self.reason}" if self.reason else text


def parse(expression: str, level: Level = "error") -> Check:
    """A check from `NAME>=BOUND`; UsageError that gives the grammar where it cannot be read."""
    match = _CHECK.fullmatch(expression)
    if match is None:
        raise UsageError(f"The check {shown(expression, 200)!r} cannot be read.", f"Write {GRAMMAR}.")
    return Check(match["metric"], match["operator"], parse_bound(match["bound"]), level, expression.strip())


def parse_bound(text: str) -> Bound:
    """`0.95`, `95%`, `baseline`, `baseline - 0.01`, `baseline * 105%`."""
    match = _BOUND.fullmatch(text)
    if match is None:
        raise UsageError(f"The bound {shown(text, 200)!r} cannot be read.", f"Write {GRAMMAR}.")
    if match["number"] is not None:
        return Bound(_number(match["number"]))
    if match["sign"] is None:
        return Bound(0.0, "+")
    return Bound(_number(match["by"]), match["sign"])  # type: ignore[arg-type]


def _number(text: str) -> float:
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def from_config(path: Path | None) -> list[Check]:
    """The checks of a TOML file's `[tool.toc.checks]`; of `toc.toml` or `pyproject.toml` here where none is named."""
    if path is not None:
        return _table_checks(_read(path), path)
    for candidate in CONFIG_FILES:
        if Path(candidate).is_file():
            checks = _table_checks(_read(Path(candidate)), Path(candidate))
            if checks:
                return checks
    return []


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{shown(str(path), 200)} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(str(path), 200)} is not TOML: {shown(str(error), 200)}.") from error


def _table_checks(config: Mapping[str, Any], path: Path) -> list[Check]:
    """`metric = ["error", {min = 0.95, max = "baseline * 1.05"}]`, one check per bound."""
    if path.name == "toc.toml" and "checks" in config:
        raise UsageError("toc.toml has a table [checks], which nothing reads.", "Call it [tool.toc.checks].")
    table = config
    for part in ("tool", "toc", "checks"):
        table = table.get(part, {})
        if not isinstance(table, Mapping):
            raise UsageError(f"{shown(str(path), 200)}: tool.toc.checks is not a table.")
    return [check for metric, entry in _flat(table) for check in _entry_checks(metric, entry, path)]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`audio.token_agreement = …` without quotes is a table in TOML: join its names again."""
    for name, entry in table.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def _entry_checks(metric: str, entry: Any, path: Path) -> list[Check]:
    match entry:
        case [("error" | "warn") as level, {**bounds}] if bounds and set(bounds) <= {"min", "max"}:
            return [_toml_check(metric, str(side), bound, level) for side, bound in bounds.items()]
    raise UsageError(
        f"{shown(str(path), 200)}: the check {shown(metric)} cannot be read.",
        'Write it as ["error", {min = 0.95}] or ["warn", {max = "baseline * 1.05"}].',
    )


def _toml_check(metric: str, side: str, bound: Any, level: Level) -> Check:
    if isinstance(bound, bool) or not isinstance(bound, (int, float, str)):
        raise UsageError(f"The bound {side} of {shown(metric)} is {shown(repr(bound))}.", f"Write {GRAMMAR}.")
    sign = ">=" if side == "min" else "<="
    return Check(metric, sign, parse_bound(str(bound)), level, f"{metric} {sign} {bound}")


def judge(
    check: Check,
    run: str,
    codebook: Mapping[str, Any],
    values: Mapping[str, float | None],
    baseline: Mapping[str, float | None] | None,
) -> Outcome:
    """Hold one check against one codebook's numbers. An undefined number fails; one that is not its own is skipped."""

    def outcome(status: Literal["passed", "failed", "skipped"], bound: float | None, reason: str = "") -> Outcome:
        return Outcome(check, run, codebook["id"], codebook["key"], status, values.get(check.metric), bound, reason)

    if check.metric not in values:
        return outcome("skipped", None, "this codebook has no such number")
    bound = check.bound.value(None if baseline is None else baseline.get(check.metric))
    measured = values[check.metric]
    if bound is None:
        if baseline is None:
            return outcome("skipped", None, "there is no baseline yet")
        return outcome("failed", None, "the baseline does not have this number")
    if measured is None:
        return outcome("failed", bound, "it is undefined for this run")
    return outcome("passed" if _HOLDS[check.operator](measured, bound) else "failed", bound)


def known(checks: Sequence[Check], names: set[str]) -> None:
    """UsageError that lists the names there are, where a check names a number that no codebook has."""
    for check in checks:
        if check.metric not in names:
            plain = sorted(name for name in names if "." not in name)
            prefixes = sorted({name.rpartition(".")[0] + "." for name in names if "." in name})
            close = get_close_matches(check.metric, sorted(names), n=1)
            guess = f"Did you mean {shown(close[0], 120)}? " if close else ""
            raise UsageError(
                f"No number is called {shown(check.metric, 120)!r} in this record.",
                f"{guess}There are: {', '.join(plain)}; and after a prefix: {', '.join(map(shown, prefixes[:40]))}.",
            )
