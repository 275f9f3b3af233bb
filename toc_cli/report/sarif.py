"""SARIF 2.1.0: failed checks and warnings as results, for the code-scanning views that read it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from toc_cli.report.assembly import Report
from toc_cli.report.metrics import METRICS
from toc_cli.report.verdict import failing
from toc_cli.report.words import name as shown

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(report: Report) -> str:
    """The report as SARIF; each result lies in its record, at the codebook of its key."""
    fatal = set(map(id, failing(report.outcomes, report.fail_on)))
    results = [
        _result(o.check.metric, "error" if id(o) in fatal else "warning", f"{o.where}: {o.sentence()}", o.run, o.key)
        for o in report.outcomes
        if o.status == "failed"
    ]
    for run in report.runs:
        keys = {subject.codebook["id"]: subject.codebook["key"] for subject in run.subjects}
        for alarm in run.alarms:
            key = keys.get(alarm.codebook) if alarm.codebook is not None else None
            results.append(_result(alarm.id, "warning", f"{run.where(alarm)}: {alarm.text}", run.run.name, key))
    rules = [
        {"id": rule, **({"shortDescription": {"text": METRICS[rule].definition}} if rule in METRICS else {})}
        for rule in sorted({result["ruleId"] for result in results})
    ]
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "toc", "version": report.version, "rules": rules}},
                "properties": {"bounds": report.bounds, "comparisons": list(report.comparisons)},
                "results": results,
            }
        ],
    }
    return json.dumps(log, indent=2, sort_keys=True) + "\n"


def _result(rule: str, level: str, message: str, record: str, key: str | None) -> dict[str, Any]:
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": quote(record)}}}
    if key is not None:
        place["logicalLocations"] = [{"fullyQualifiedName": key}]
    return {"ruleId": rule, "level": level, "message": {"text": shown(message, 1000)}, "locations": [place]}
