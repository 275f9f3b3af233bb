"""Joins records, baseline and checks into the one report that every format renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toc_cli import __version__
from toc_cli.errors import CheckFailed, InputError, UsageError
from toc_cli.report import advice, counts, verdict
from toc_cli.report import checks as gate
from toc_cli.report.advice import Advice
from toc_cli.report.baseline import compared, counterpart
from toc_cli.report.checks import Check, Outcome
from toc_cli.report.metrics import values
from toc_cli.report.reading import Run
from toc_cli.report.verdict import Alarm, Values
from toc_cli.report.words import name as shown
from toc_cli.report.words import plural

FailOn = Literal["error", "warn"]


@dataclass(frozen=True)
class Subject:
    """One codebook of one run: its entry in the record, its numbers, and the baseline's."""

    codebook: dict[str, Any]
    values: Values
    baseline: Values | None
    outcomes: tuple[Outcome, ...]
    summary: str


@dataclass(frozen=True)
class RunReport:
    """One run: its record, its codebooks, and what must be said about them."""

    run: Run
    subjects: tuple[Subject, ...]
    alarms: tuple[Alarm, ...]
    advice: Advice
    tokens: tuple[Outcome, ...] = ()
    """Checks on datasets of tokens, where the run is one of toc quantize."""

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every check on the run."""
        return (*(outcome for subject in self.subjects for outcome in subject.outcomes), *self.tokens)

    def where(self, alarm: Alarm, *, named: bool = True) -> str:
        """The record, and the codebook that a warning is about; not `named` where its name stands beside its number elsewhere."""
        record = shown(self.run.name, 100)
        keys = {subject.codebook["id"]: subject.codebook["key"] for subject in self.subjects}
        if alarm.codebook not in keys:
            return record
        return f"{record}, codebook {alarm.codebook}" + (f" {shown(keys[alarm.codebook], 100)}" if named else "")


@dataclass(frozen=True)
class Report:
    """Everything a format renders."""

    runs: tuple[RunReport, ...]
    baseline: Run | None
    outcomes: tuple[Outcome, ...]
    status: str
    """pass, warn, fail or open (nothing was checked)."""
    headline: str
    fail_on: FailOn
    advice: Advice
    """The most cautious of the runs'."""
    bounds: str
    """Where the bounds came from and how often they were applied."""
    comparisons: tuple[str, ...]
    """What the baseline is to each run."""
    version: str = __version__

    @property
    def provenance(self) -> tuple[str, ...]:
        """Where the bounds came from, and what the baseline is."""
        return (self.bounds, *self.comparisons)

    @property
    def tone(self) -> str:
        """pass, warn or fail, as a reader should take it: the advice decides where nothing was checked."""
        return self.status if self.status != "open" else advice.TONE[self.advice.kind]

    def raise_failed(self) -> None:
        """CheckFailed that names the failed checks, where any counts."""
        failed = verdict.failing(self.outcomes, self.fail_on)
        if failed:
            first = "; ".join(f"{outcome.where}: {outcome.sentence()}" for outcome in failed[:3])
            more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
            raise CheckFailed(
                f"{plural(len(failed), 'check')} {'fails' if len(failed) == 1 else 'fail'}: {first}{more}.",
                "--exit-zero reports without failing.",
            )


def assemble(
    runs: Sequence[Run],
    checks: Sequence[Check] = (),
    baseline: Run | None = None,
    fail_on: FailOn = "error",
    *,
    first: bool = False,
    baseline_any: bool = False,
) -> Report:
    """Judge every check on every codebook of every run.

    `first`: there is no baseline yet and one is about to be made, so relative checks are skipped.
    `baseline_any`: compare with a baseline that was measured on other features too.
    UsageError for a check that names no number or cannot be meant, a relative one without a baseline, or a baseline of
    other features; InputError where the baseline lacks a codebook.
    """
    if baseline is None and not first and any(check.bound.sign for check in checks):
        expression = next(check.expression for check in checks if check.bound.sign)
        raise UsageError(
            f"The check {shown(expression, 200)!r} needs a baseline.", "Name one with --baseline OLD.toc.json."
        )
    measured = [[values(book, run.record) for book in run.record["codebooks"]] for run in runs]
    tokens = {name for run in runs for dataset in counts.datasets(run.record) for name in counts.values(dataset)}
    gate.known(checks, tokens | {name for numbers in measured for book in numbers for name in book})
    gate.meant(checks)
    if checks and (bare := [run for run in runs if not run.record["codebooks"] and not counts.datasets(run.record)]):
        raise InputError(f"{shown(bare[0].name)} has no codebook, so that no check applies to it.", "Leave it out.")
    notes = () if baseline is None else tuple(compared(run, baseline, baseline_any) for run in runs)
    reports = tuple(_run(run, numbers, checks, baseline) for run, numbers in zip(runs, measured, strict=True))
    outcomes = tuple(outcome for report in reports for outcome in report.outcomes)
    left = sum(len(unweighed(report)) for report in reports)
    worst = advice.of_all([(report.run.name, report.advice, bool(report.subjects)) for report in reports])
    return Report(
        reports,
        baseline,
        outcomes,
        verdict.status(outcomes, left, fail_on),
        verdict.headline(outcomes, left, fail_on, worst.text),
        fail_on,
        worst,
        gate.spoken_bounds(checks, outcomes),
        notes,
    )


def unweighed(report: RunReport) -> list[Alarm]:
    """The run's warnings whose number no passed check has weighed."""
    weighed = {(o.check.metric, o.codebook) for o in report.outcomes if o.status == "passed" and o.of == "codebook"}
    return [alarm for alarm in report.alarms if (alarm.metric, alarm.codebook) not in weighed]


def _run(run: Run, numbers: Sequence[Values], checks: Sequence[Check], baseline: Run | None) -> RunReport:
    subjects = []
    for codebook, measured in zip(run.record["codebooks"], numbers, strict=True):
        old = None if baseline is None else counterpart(codebook, baseline)
        judged = tuple(gate.judge(check, run.name, codebook, measured, old) for check in checks)
        subjects.append(Subject(codebook, measured, old, judged, verdict.summary(codebook, measured)))
    by_id = {subject.codebook["id"]: subject.values for subject in subjects}
    alarms = tuple(verdict.warnings(run.record, by_id))
    return RunReport(run, tuple(subjects), alarms, advice.advise(run.record, by_id), _tokens(run, checks, baseline))


def _tokens(run: Run, checks: Sequence[Check], baseline: Run | None) -> tuple[Outcome, ...]:
    """Every check on every dataset of tokens; the baseline's is that of the same name."""
    before = {} if baseline is None else {d["name"]: counts.values(d) for d in counts.datasets(baseline.record)}
    found = []
    for number, dataset in enumerate(counts.datasets(run.record)):
        old = None if baseline is None else before.get(dataset["name"], {})
        about = {"id": number, "key": dataset["name"]}
        own = counts.values(dataset)
        found += [gate.judge(check, run.name, about, own, old, "dataset") for check in checks]
    return tuple(found)
