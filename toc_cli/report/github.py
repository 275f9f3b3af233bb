"""GitHub workflow commands: one annotation per failed check, then the warnings, ten at most; a notice of the bounds."""

from __future__ import annotations

from toc_cli.report.assembly import Report
from toc_cli.report.verdict import failing, reading
from toc_cli.report.words import name as shown

MOST = 10


def render(report: Report) -> str:
    """One line per annotation; failed checks first. Where there are more than ten, the last line counts the rest."""
    fatal = set(map(id, failing(report.outcomes, report.fail_on)))
    lines = [
        annotation("error" if id(o) in fatal else "warning", o.check.metric, f"{o.where}: {o.sentence()}")
        for o in sorted(report.outcomes, key=lambda o: id(o) not in fatal)
        if o.status == "failed"
    ]
    for run in report.runs:
        for alarm in run.alarms:
            lines.append(annotation("warning", alarm.id, f"{run.where(alarm)}: {alarm.text}"))
    if len(lines) > MOST:
        level = "error" if lines[MOST - 1].startswith("::error") else "warning"
        rest = len(lines) - MOST + 1
        lines[MOST - 1 :] = [annotation(level, "more", f"{rest} more findings; the other formats list them all")]
    for run in report.runs:
        known = [
            f"{shown(each.codebook['key'], 80)}: {reading(each.codebook)}"
            for each in run.subjects
            if reading(each.codebook)
        ]
        if known:
            lines.append(annotation("notice", "reading", "; ".join(known)))
    lines.append(annotation("notice", "bounds", " ".join(report.provenance)))
    return "".join(f"{line}\n" for line in lines)


def annotation(level: str, title: str, message: str) -> str:
    """`::error title=…::…` with what would end or forge a command escaped."""
    return f"::{level} title={_property(f'toc {shown(title, 100)}')}::{_data(shown(message, 500))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
