"""Where a report goes: files named by `--format`, at most one format on stdout, and a new baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toc_cli.errors import UsageError
from toc_cli.io.atomic import atomic_file, check_target, write_errors
from toc_cli.io.publish import published
from toc_cli.report.assembly import Report
from toc_cli.report.formats import FORMATS, drawn
from toc_cli.report.words import name as shown


@dataclass(frozen=True)
class Target:
    """A format and the file it goes to; None is stdout."""

    kind: str
    path: Path | None


def parse_formats(texts: Sequence[str]) -> list[Target]:
    """`html:r.html,md:r.md,github` as targets; UsageError for an unknown format or two on stdout."""
    targets = []
    for entry in (entry.strip() for text in texts for entry in text.split(",") if entry.strip()):
        kind, _, path = entry.partition(":")
        if kind not in FORMATS:
            raise UsageError(
                f"There is no format {shown(kind)!r}.",
                f"Formats: {', '.join(FORMATS)}; write KIND:FILE, or KIND for stdout.",
            )
        targets.append(Target(kind, Path(path) if path else None))
    on_stdout = [target.kind for target in targets if target.path is None]
    if len(on_stdout) > 1:
        raise UsageError(f"{' and '.join(on_stdout)} cannot both go to stdout.", "Give all but one a file: KIND:FILE.")
    paths = [target.path for target in targets if target.path is not None]
    if len(set(paths)) < len(paths):
        raise UsageError("Two formats name the same file.", "Give each its own.")
    return targets


def check_targets(targets: Sequence[Target], inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse, before any work, a file that exists (without `force`) or is one of the records."""
    for target in targets:
        if target.path is not None:
            check_target(target.path, force=force, inputs=inputs)


def write(report: Report, targets: Sequence[Target], *, force: bool = False) -> str | None:
    """Render every target, then write the files; returns what goes to stdout."""
    rendered = [(target.path, drawn(target.kind, report)) for target in targets]
    for path, text in rendered:
        if path is not None:
            with published(path, force=force) as aside, write_errors(path):
                aside.write_text(text, encoding="utf-8", newline="\n")
    return next((text for path, text in rendered if path is None), None)


def update_baseline(record: Path, baseline: Path) -> None:
    """Make this record the baseline, byte for byte."""
    if baseline.exists() and record.samefile(baseline):
        raise UsageError(f"{shown(str(record), 200)} is the baseline itself.", "Name the new run's record.")
    with atomic_file(baseline) as temporary:
        temporary.write_bytes(record.read_bytes())
