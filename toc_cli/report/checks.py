"""The gate: what a check says, whether it can be meant, and whether it holds."""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, NoReturn

from toc_cli.errors import UsageError
from toc_cli.report.metrics import SHARES, describe, span
from toc_cli.report.words import name as shown
from toc_cli.report.words import plural, raw

Level = Literal["error", "warn"]
GRAMMAR = "NAME >= 0.95 or >= 95%, or NAME <= baseline * 1.05 (also >, <, == and baseline + or - NUMBER)"
COMMAND_LINE = "the command line"
ROUNDING = 1e-6
"""How far a number may lie outside of what it can be before its record counts as altered."""

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
    percent: bool = field(default=False, compare=False)
    """Whether the number was written with a percent sign (it is a share here)."""

    def value(self, baseline: float | None) -> float | None:
        """The bound as a number; None where it needs a baseline's value and there is none."""
        if not self.sign:
            return self.number
        if baseline is None:
            return None
        return {"+": operator.add, "-": operator.sub, "*": operator.mul}[self.sign](baseline, self.number)

    def between(self, low: float, high: float) -> tuple[float, float]:
        """The least and the most that the bound can be, for a baseline from `low` to `high` (infinite ends allowed)."""
        if self.sign == "*" and not self.number:
            return 0.0, 0.0
        ends = [self.value(low), self.value(high)]
        return min(end for end in ends if end is not None), max(end for end in ends if end is not None)


@dataclass(frozen=True)
class Check:
    """One line of the gate."""

    metric: str
    operator: str
    bound: Bound
    level: Level
    expression: str
    """As the user wrote it."""
    source: str = COMMAND_LINE
    """The command line, or file and table."""


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
    of: Literal["codebook", "dataset"] = "codebook"
    """What was judged: a dataset is one of tokens that toc quantize counted."""

    @property
    def where(self) -> str:
        """The record and the codebook, or the dataset of tokens."""
        return f"{shown(self.run, 100)}, {self.of} {self.codebook} {shown(self.key, 100)}"

    def sentence(self) -> str:
        """What was measured against what was asked, shares in percent."""
        percent = describe(self.check.metric).unit in SHARES
        asked = self.check.expression if self.bound is None else f"{self.check.operator} {raw(self.bound, percent)}"
        relative = f" ({self.check.expression})" if self.check.bound.sign and self.bound is not None else ""
        text = (
            f"{shown(self.check.metric, 120)} is {raw(self.measured, percent)}; asked: {shown(asked + relative, 200)}"
        )
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
        return _bound(match["number"], "")
    if match["sign"] is None:
        return Bound(0.0, "+")
    return _bound(match["by"], match["sign"])  # type: ignore[arg-type]


def _bound(text: str, sign: Literal["", "+", "-", "*"]) -> Bound:
    percent = text.endswith("%")
    number = float(text.removesuffix("%")) / (100 if percent else 1)
    if not math.isfinite(number):
        raise UsageError(f"The bound {shown(text, 200)!r} is no finite number.", f"Write {GRAMMAR}.")
    return Bound(number, sign, percent)


def bounded_check(metric: str, operator: str, bound: str, level: Level, source: str) -> Check:
    """A check whose parts stand apart, as in a table."""
    return Check(metric, operator, parse_bound(bound), level, f"{metric} {operator} {bound}", source)


def meant(checks: Sequence[Check]) -> None:
    """UsageError for a bound that no value can miss or meet, and for one whose number has two readings.

    The names are `known`.
    """
    for check in checks:
        metric, bound = describe(check.metric), check.bound
        said = shown(check.expression, 200)
        if metric.unit in SHARES:
            large = bound.number > 1 or (bound.number < -1 and metric.unit != "share")
            if large and not bound.percent and bound.sign != "*":
                _two_readings(check, said)
        elif bound.percent and bound.sign != "*":
            helps = f" Or is baseline * {100 + 100 * bound.number:g}% meant?" if bound.sign == "+" else ""
            raise UsageError(
                f"{said}: {metric.name} is no share, so a percentage says nothing.", f"Write a plain number.{helps}"
            )
        low, high = span(metric)
        least, most = bound.between(low, high)
        always = {">=": most <= low, ">": most < low, "<=": least >= high, "<": least > high}
        never = {
            ">=": least > high, ">": least >= high, "<=": most < low, "<": most <= low,
            "==": not (least <= high and low <= most),
        }  # fmt: skip
        if always.get(check.operator) or never[check.operator]:
            held = "always holds" if always.get(check.operator) else "never holds"
            percent = metric.unit in SHARES
            between = " to ".join("any height" if math.isinf(end) else raw(end, percent) for end in (low, high))
            raise UsageError(
                f"{said} {held}: {metric.name} lies in {between}.", "Set a bound that can be missed and met."
            )


def _two_readings(check: Check, said: str) -> NoReturn:
    """`>=95` of an agreement, `<=2` of a distortion."""
    metric, bound = describe(check.metric), check.bound
    sign = f"baseline {bound.sign} " if bound.sign else ""
    percent, plain = (
        f"{check.metric} {check.operator} {sign}{number:g}%" for number in (bound.number, 100 * bound.number)
    )
    if metric.unit == "share" and span(metric)[1] == 1:
        raise UsageError(f"{said}: {metric.name} is a share of 1, and {bound.number:g} is more.", f"Write {percent}?")
    raise UsageError(
        f"{said}: {metric.name} is a share of 1, so that {bound.number:g} may be read in two ways.",
        f"Write {percent}, or {plain}.",
    )


def spoken_bounds(checks: Sequence[Check], outcomes: Sequence[Outcome]) -> str:
    """Where the bounds came from and how often they were applied, in a sentence."""
    if not checks:
        return "No bounds were set: nothing was checked."
    sources = Counter(check.source for check in checks)
    made = sum(outcome.status != "skipped" for outcome in outcomes)
    skipped = len(outcomes) - made
    judged = {(o.of, o.run, o.codebook) for o in outcomes}
    kinds = [plural(count, of) for of in ("codebook", "dataset") if (count := sum(place[0] == of for place in judged))]
    return (
        f"{plural(len(checks), 'bound')} ({', '.join(f'{count} from {source}' for source, count in sources.items())}), "
        f"applied {plural(made, 'time')} to {' and '.join(kinds) or '0 codebooks'}"
        + (f", {skipped} skipped." if skipped else ".")
    )


def judge(
    check: Check,
    run: str,
    codebook: Mapping[str, Any],
    values: Mapping[str, float | None],
    baseline: Mapping[str, float | None] | None,
    of: Literal["codebook", "dataset"] = "codebook",
) -> Outcome:
    """Hold one check against the numbers of a codebook or a dataset of tokens. An undefined number fails; one that is not its own
    is skipped."""

    def outcome(status: Literal["passed", "failed", "skipped"], bound: float | None, reason: str = "") -> Outcome:
        return Outcome(check, run, codebook["id"], codebook["key"], status, values.get(check.metric), bound, reason, of)

    if check.metric not in values:
        return outcome("skipped", None, f"this {of} has no such number")
    bound = check.bound.value(None if baseline is None else baseline.get(check.metric))
    measured = values[check.metric]
    if bound is None:
        if baseline is None:
            return outcome("skipped", None, "there is no baseline yet")
        return outcome("failed", None, "the baseline does not have this number")
    if measured is None:
        return outcome("failed", bound, "it is undefined for this run")
    low, high = span(describe(check.metric))
    if not low - ROUNDING <= measured <= high + ROUNDING:
        return outcome("failed", bound, "it cannot have this value: the record is not as it was written")
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
                f"{guess}There are: {', '.join(plain)}"
                + (f"; and after a prefix: {', '.join(map(shown, prefixes[:40]))}." if prefixes else "."),
            )
