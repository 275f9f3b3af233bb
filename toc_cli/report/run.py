"""The whole of `toc report` as one function: read, judge, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toc_cli.errors import UsageError
from toc_cli.report import checks, verdict, writing
from toc_cli.report.assembly import FailOn, Report, assemble
from toc_cli.report.config import from_config
from toc_cli.report.reading import locate, read_run, read_runs


@dataclass(frozen=True)
class Done:
    """The report, what goes to stdout if a format was asked for there, and what else was done."""

    report: Report
    text: str | None
    notes: tuple[str, ...]


def report_runs(
    records: Sequence[Path] = (),
    *,
    formats: Sequence[str] = (),
    expressions: Sequence[str] = (),
    config: Path | None = None,
    baseline: Path | None = None,
    update_baseline: bool = False,
    baseline_any: bool = False,
    fail_on: FailOn = "error",
    force: bool = False,
) -> Done:
    """Render `records` (default: the newest here) in `formats` and hold them to the checks of `expressions` and `config`.

    Raises UsageError (a check, format or flag that cannot be meant), InputError (a record that cannot be used),
    OutputError. A failed check raises nothing here: see `Report.raise_failed`.
    """
    paths = locate(records, baseline)
    if update_baseline and (baseline is None or len(paths) != 1):
        raise UsageError("--update-baseline needs --baseline and exactly one record.", "Name the record to copy.")
    targets = writing.parse_formats(formats)
    writing.check_targets(targets, [*paths, *([baseline] if baseline else [])], force=force)
    asked = [*(checks.parse(expression) for expression in expressions), *from_config(config)]
    first = update_baseline and baseline is not None and not baseline.exists()
    old = None if baseline is None or first else read_run(baseline, foreign=baseline_any)
    report = assemble(read_runs(paths), asked, old, fail_on, first=first, baseline_any=baseline_any)
    text = writing.write(report, targets, force=force)
    notes = [f"Written: {target.path}" for target in targets if target.path is not None]
    if update_baseline and baseline is not None:
        if verdict.failing(report.outcomes, fail_on):
            notes.append(f"The baseline {baseline} stays as it was: a check fails.")
        else:
            writing.update_baseline(paths[0], baseline)
            notes.append(f"The baseline is now {baseline}.")
    return Done(report, text, tuple(notes))
