"""The report as JSON: the verdict, each check, each warning, each checkable number (schema: report.schema.json)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from toc_cli.report.assembly import Report
from toc_cli.report.checks import Outcome


def data(report: Report) -> dict[str, Any]:
    """JSON-able; names out of files are whole and unescaped here, as data."""
    return {
        "schema_version": 1,
        "tool": {"name": "toc", "version": report.version},
        "verdict": report.status,
        "headline": report.headline,
        "advice": asdict(report.advice),
        "bounds": report.bounds,
        "comparisons": list(report.comparisons),
        "checks": [_check(outcome) for outcome in report.outcomes],
        "runs": [
            {
                "name": run.run.name,
                "advice": asdict(run.advice),
                "warnings": [asdict(alarm) for alarm in run.alarms],
                "codebooks": [
                    {
                        "id": subject.codebook["id"],
                        "key": subject.codebook["key"],
                        "summary": subject.summary,
                        "metrics": dict(subject.values),
                        "baseline": None if subject.baseline is None else dict(subject.baseline),
                    }
                    for subject in run.subjects
                ],
            }
            for run in report.runs
        ],
    }


def render(report: Report) -> str:
    """`data` as text, keys sorted, ASCII only (an ANSI sequence in a name stays an escape)."""
    return json.dumps(data(report), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _check(outcome: Outcome) -> dict[str, Any]:
    return {
        "run": outcome.run,
        "codebook": outcome.codebook,
        "key": outcome.key,
        "metric": outcome.check.metric,
        "operator": outcome.check.operator,
        "expression": outcome.check.expression,
        "level": outcome.check.level,
        "source": outcome.check.source,
        "status": outcome.status,
        "measured": outcome.measured,
        "bound": outcome.bound,
        "reason": outcome.reason,
    }
