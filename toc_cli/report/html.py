"""One offline HTML page: no script, no address, names out of files escaped by the template engine."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from toc_cli.errors import missing_extra
from toc_cli.report import counted, evaluation, gallery, outcome, strips, tables
from toc_cli.report.advice import RULES, rerun
from toc_cli.report.assembly import Report, RunReport, Subject, unweighed
from toc_cli.report.checks import Outcome
from toc_cli.report.metrics import METRICS
from toc_cli.report.words import interval, number, option, resampled
from toc_cli.report.words import name as shown

SEAL = {"pass": "✓", "warn": "!", "fail": "✕"}
TILES = ("token_agreement", "excess_distortion", "advantage_over_random", "bytes_ratio")
ROOM, BOOK = 12, 3
"""What is drawn in a page: each codebook takes `BOOK` and one per level and head; those beyond `ROOM` keep their tables."""


def render(report: Report) -> str:
    """The page as text; needs the extra `report` (matplotlib, Jinja2)."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise missing_extra("Jinja2", "report") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(_resource("template.html"))
    books, room = [], ROOM
    pairs = [(run, subject) for run in report.runs for subject in run.subjects]
    for index, (run, subject) in enumerate(pairs):
        cost = BOOK + len(subject.codebook.get("figures", ()))
        drawn = index == 0 or cost <= room
        room -= cost if drawn else 0
        books.append(_book(report, run, subject, index, drawn))
    for book in books:
        for group in book["groups"]:
            group["pictures"] = [{**picture, "svg": Markup(picture["svg"])} for picture in group["pictures"]]
    return template.render(
        report=report,
        style=Markup(_resource("style.css")),
        seal=SEAL[report.tone],
        advice=_spoken(f"{'' if report.status == 'open' else report.advice.text} {report.advice.then}".strip()),
        rules=RULES,
        summaries=[_summary(subject) for _, subject in pairs],
        tiles=_tiles(report),
        outcomes=[_outcome(o) for o in sorted(report.outcomes, key=lambda o: o.status != "failed")],
        alarms=_alarms(report),
        books=books,
        decoded=[
            {
                "sheet": sheet,
                "samples": outcome.samples(run.run.record),
                "sound": run.run.record["outcome"]["kind"] == "sound",
            }
            for run in report.runs
            if (sheet := outcome.sheet(run.run.record))
        ]
        + [
            {"sheet": sheet, "samples": [], "sound": False}
            for run in report.runs
            for sheet in counted.sheets(run.run.record)
        ],
        evaluations=[
            {
                "headline": evaluation.headline(run.run.record),
                "forms": evaluation.FORMS,
                "sheets": sheets,
                "strips": strips.strips(run.run.record),
            }
            for run in report.runs
            if (sheets := evaluation.sheets(run.run.record))
        ],
        runs=[_run(run) for run in report.runs],
    )


def _spoken(text: str) -> list[tuple[bool, str]]:
    """A sentence in parts, those in backticks (commands) marked."""
    return [(at % 2 == 1, part) for at, part in enumerate(shown(text, 2000).split("`")) if part]


def _resource(name: str) -> str:
    return files("toc_cli.report").joinpath(name).read_text(encoding="utf-8")


def _summary(subject: Subject) -> str:
    return f"{shown(subject.codebook['key'])}: {subject.summary}."


def _tiles(report: Report) -> list[dict[str, Any]]:
    """Four numbers at a glance, where there is exactly one codebook."""
    subjects = [subject for run in report.runs for subject in run.subjects]
    if len(subjects) != 1:
        return []
    subject = subjects[0]
    advantage = (subject.codebook.get("advantage_over_random") or {}).get("distortion") or {}
    spreads = {
        **{
            name: interval(bounds, METRICS[name].unit)
            for name, bounds in subject.codebook["ci95"]["after"].items()
            if name in METRICS
        },
        "advantage_over_random": interval(advantage.get("ci95"), "points"),
        "bytes_ratio": " → ".join(number(subject.codebook[side].get("bytes"), "bytes") for side in ("before", "after")),
    }
    return [
        {
            "metric": METRICS[name],
            "text": number(subject.values[name], METRICS[name].unit),
            "spread": spreads.get(name, ""),
        }
        for name in TILES
        if subject.values.get(name) is not None
    ]


def _outcome(outcome: Outcome) -> dict[str, str]:
    soft = outcome.status == "failed" and outcome.check.level == "warn"
    return {
        "kind": "soft" if soft else outcome.status,
        "mark": {"passed": "✓", "failed": "✕", "skipped": "–"}[outcome.status],
        "text": outcome.sentence(),
        "where": outcome.where + (", warn level" if outcome.check.level == "warn" else ""),
    }


def _alarms(report: Report) -> list[dict[str, Any]]:
    found = []
    for run in report.runs:
        open_ones = unweighed(run)
        for alarm in run.alarms:
            found.append(
                {
                    "text": shown(alarm.text, 1000),
                    "where": run.where(alarm, named=False),
                    "metric": alarm.metric,
                    "weighed": alarm not in open_ones,
                }
            )
    return sorted(found, key=lambda alarm: alarm["weighed"])


def _book(report: Report, run: RunReport, subject: Subject, index: int, drawn: bool) -> dict[str, Any]:
    book = subject.codebook
    title = f"Codebook {book['id']}: {shown(book['key'])}" + (
        f" ({shown(run.run.name)})" if len(report.runs) > 1 else ""
    )
    groups = gallery.groups(subject, run.run.record["options"]) if drawn else []
    return {
        "anchor": f"codebook-{index}",
        "title": title,
        "drawn": drawn,
        "about": _about(book)
        + (
            ""
            if drawn
            else " Its pictures are left out to keep the page small: toc optimize --codebook KEY makes a record of it alone."
        ),
        "criterion": shown(str(run.run.record["options"].get("criterion")), 24),
        "evaluated": f"{book['sample']['evaluated']:,} of {book['sample']['rows']:,}",
        "resampled": resampled(book["sample"]),
        "quality": tables.quality(subject),
        "state": tables.state(subject),
        "trust": tables.trust(subject),
        "compared": tables.compared(subject),
        "baseline": shown(report.baseline.name) if report.baseline else "",
        "worth": _worth(book),
        "groups": [_group(group, f"{index}-{place}") for place, group in enumerate(groups)],
    }


def _worth(book: dict[str, Any]) -> list[list[str]]:
    """What the levels of a residual codebook are worth: levels, distortion, signal to noise, bits."""
    return [
        [
            f"{point['levels']}{' (kept)' if point['levels'] == book['levels_cut']['after'] < book['levels_cut']['before'] else ''}",
            number(point["distortion"], METRICS["distortion"].unit),
            number(point["snr_db"], METRICS["snr_db"].unit),
            f"{point['bits_per_row']:,.4g}",
            "–" if point["bits_per_second"] is None else f"{point['bits_per_second']:,.0f}",
        ]
        for point in (book.get("levels_cut") or {}).get("curve", ())
    ]


def _about(book: dict[str, Any]) -> str:
    codes = sorted(set(book["num_codes"]))
    sizes = f"{codes[0]:,}" if len(codes) == 1 else f"{codes[0]:,} to {codes[-1]:,}"
    shape = [
        f"{shown(book['family'], 40)}, {book['metric']} distance",
        f"{sizes} codes of {book['dim']:,} dimensions, {shown(book['dtype'], 20)}",
    ]
    if book["levels"] > 1:
        shape.append(f"{book['levels']} {'residual ' if book['residual'] else ''}levels")
    if book["heads"] > 1:
        shape.append(f"{book['heads']} heads")
    fill = {"mean": "their usage-weighted mean", "zero": "zero"}[book["fill"]]
    return "; ".join(shape) + f". Dropped dimensions are filled with {fill}."


def _group(group: gallery.Group, prefix: str) -> dict[str, Any]:
    return {
        "title": group.title,
        "text": group.text,
        "kind": group.kind,
        "pictures": [
            {
                "title": picture.title,
                "svg": _own_ids(picture.svg, f"p{prefix}-{index}-"),
                "caption": picture.caption,
                "legend": picture.legend,
                "square": picture.square,
                "ramp": picture.ramp,
            }
            for index, picture in enumerate(group.pictures)
        ],
    }


def _own_ids(svg: str, prefix: str) -> str:
    """Ids that no other picture of the page shares."""
    return re.sub(r'((?<= id=")|(?<=url\(#)|(?<=href="#))', prefix, svg)


def _run(run: RunReport) -> dict[str, Any]:
    record = run.run.record
    files_ = [(i["role"], i) for i in record["inputs"]] + [(f"output: {o['mode']}", o) for o in record["outputs"]]
    return {
        "name": shown(run.run.name),
        "command": rerun(record),
        "tool": f"{shown(record['tool']['name'], 40)} {shown(record['tool']['version'], 40)}",
        "files": [
            {
                "role": shown(role, 40),
                "name": shown(entry["name"], 120),
                "bytes": f"{entry['bytes']:,}",
                "sha256": shown(entry["sha256"], 80),
            }
            for role, entry in files_
        ],
        "options": [
            {"name": shown(key, 40), "value": option(value)}
            for key, value in sorted(record["options"].items())
            if value is not None
        ],
    }
