"""Markdown for a pull request or a CI step summary: verdict first, details folded, always under GitHub's 1 MiB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from toc_cli.report import counted, evaluation, outcome, tables
from toc_cli.report.advice import rerun
from toc_cli.report.assembly import Report, RunReport, Subject
from toc_cli.report.checks import Outcome
from toc_cli.report.tables import Row
from toc_cli.report.words import name as shown
from toc_cli.report.words import option, plural

MOST_BYTES = 1_000_000
MARK = {"pass": "✅", "warn": "⚠️", "fail": "❌", "passed": "✅", "failed": "❌", "skipped": "➖"}
_CUT = "\n*Cut here to stay under GitHub's limit; the JSON report has everything.*\n"


def render(report: Report) -> str:
    """The whole report as one markdown text."""
    advice = "" if report.status == "open" else report.advice.text
    blocks = [f"## {MARK[report.tone]} {_prose(report.headline)}", _spoken(f"{advice} {report.advice.then}".strip())]
    blocks = [*filter(None, blocks), *_checks(report.outcomes), "  \n".join(map(_prose, report.provenance))]
    for run in report.runs:
        blocks += [f"### {code(run.run.name)}", *_alarms(run)]
        for subject in run.subjects:
            blocks += _subject(subject, report)
        blocks += _outcome(run)
        blocks += _evaluation(run)
        blocks.append(_provenance(run))
    return _bounded(blocks)


def code(text: str, limit: int = 80) -> str:
    """A name out of a file as inline code; every character that markdown, HTML or GitHub could obey is an entity."""
    return f"<code>{escaped(shown(text, limit))}</code>"


def escaped(text: str) -> str:
    """Text with everything but letters, digits, spaces and plain punctuation as numeric entities."""
    return "".join(c if c.isalnum() or c in " .,-/" else f"&#{ord(c)};" for c in text)


def _prose(text: str) -> str:
    """A sentence of ours that may quote a name: only what can start markup is escaped."""
    return "".join(f"&#{ord(c)};" if c in "<>&`*_[]\\|@#~$!" else c for c in shown(text, 1000))


def _spoken(text: str) -> str:
    """A sentence of ours whose commands stand in backticks: those as code, the rest as prose."""
    parts = text.split("`")
    return "".join(code(part, 1000) if at % 2 else _prose(part) for at, part in enumerate(parts))


def _checks(outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return []
    rows = [
        (
            _mark(o),
            code(o.check.expression, 120),
            o.check.level,
            code(o.run),
            code(f"{o.codebook}: {o.key}"),
            _prose(o.sentence()),
        )
        for o in sorted(outcomes, key=lambda o: o.status != "failed")
    ]
    return [_table(("", "check", "level", "record", "codebook", "measured"), rows)]


def _mark(outcome: Outcome) -> str:
    soft = outcome.status == "failed" and outcome.check.level == "warn"
    return MARK["warn" if soft else outcome.status]


def _alarms(run: RunReport) -> list[str]:
    lines = [
        f"- ⚠️ {_prose(run.where(alarm))}: {_prose(alarm.text)}" + (f" (`{alarm.metric}`)" if alarm.metric else "")
        for alarm in run.alarms
    ]
    return ["\n".join(lines)] if lines else []


def _subject(subject: Subject, report: Report) -> list[str]:
    book = subject.codebook
    size = f"n = {plural(book['sample']['evaluated'], 'feature')}"
    blocks = [
        f"**Codebook {book['id']}** {code(book['key'])} {_prose(subject.summary)}",
        _table(
            (f"{size}", "before", "after", "random, mean (range)", "variance", "PCA"), _rows(tables.quality(subject))
        ),
    ]
    if subject.baseline is not None and report.baseline is not None:
        blocks.append(
            _fold(
                "Against the baseline", _table(("", "baseline", "this run", "change"), _rows(tables.compared(subject)))
            )
        )
    blocks.append(_fold("Codes and their use", _table(("", "before", "after", "change"), _rows(tables.state(subject)))))
    if rows := tables.trust(subject):
        blocks.append(_fold("How far to trust the selection", _table(("", "value"), _rows(rows))))
    if levels := _levels(subject):
        blocks.append(_fold("Levels and modalities", levels))
    return blocks


def _outcome(run: RunReport) -> list[str]:
    decoded = outcome.sheet(run.run.record)
    blocks = []
    for sheet in ([decoded] if decoded else []) + list(counted.sheets(run.run.record)):
        rows = [(_prose(line.label), *(_prose(str(cell)) for cell in line.cells)) for line in sheet.rows]
        head = [_prose(column) for column in sheet.head]
        blocks += [f"**{_prose(sheet.title)}** {_prose(sheet.text)}", _table(head, rows)]
    return blocks


def _evaluation(run: RunReport) -> list[str]:
    sheets = evaluation.sheets(run.run.record)
    if not sheets:
        return []
    blocks = [f"**{_prose(evaluation.headline(run.run.record))}** {_prose(evaluation.FORMS)}"]
    for sheet in sheets:
        rows = [(_prose(line.label), *(_prose(str(cell)) for cell in line.cells)) for line in sheet.rows]
        head = [_prose(column) for column in sheet.head]
        blocks.append(_fold(_prose(sheet.title), f"{_prose(sheet.text)}\n\n{_table(head, rows)}"))
    return blocks


def _levels(subject: Subject) -> str:
    book = subject.codebook
    names = ("token_agreement", "excess_distortion", "snr_db", "used_codes", "perplexity")
    parts = [(f"level {level['level']}", level["after"]) for level in book.get("per_level", ())]
    parts += [(code(name, 40), modality["after"]) for name, modality in list(book.get("per_modality", {}).items())[:64]]
    rows = [(label, *(str(tables.cell(name, after)) for name in names)) for label, after in parts]
    return _table(("", *(tables.METRICS[name].label for name in names)), rows) if rows else ""


def _provenance(run: RunReport) -> str:
    record = run.run.record
    rows = [(escaped(i["role"]), code(i["name"]), f"{i['bytes']:,}", code(i["sha256"])) for i in record["inputs"]]
    rows += [(escaped(o["mode"]), code(o["name"]), f"{o['bytes']:,}", code(o["sha256"])) for o in record["outputs"]]
    options = ", ".join(
        f"{escaped(shown(key, 40))} {code(option(value), 80)}"
        for key, value in sorted(record["options"].items())
        if value is not None
    )
    version = f"{escaped(shown(record['tool']['name']))} {escaped(shown(record['tool']['version']))}"
    return _fold(
        "Provenance",
        _table(("", "file", "bytes", "SHA-256"), rows)
        + f"\n\nMade by {version}. Options: {options}\n\nAgain: {code(rerun(record), 1000)}",
    )


def _rows(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    return [(row.metric.label, *(str(cell).replace("[", "&#91;") for cell in row.cells)) for row in rows]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _bounded(blocks: Sequence[str]) -> str:
    """Whole blocks as long as they fit."""
    kept: list[str] = []
    room = MOST_BYTES - len(_CUT.encode())
    for block in blocks:
        room -= len(block.encode()) + 2
        if room < 0:
            kept.append(_CUT)
            break
        kept.append(block)
    return "\n\n".join(kept) + "\n"
