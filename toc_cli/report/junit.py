"""JUnit XML: one suite per run and codebook, one case per check, the measured value against the bound."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as xml

from toc_cli.report.assembly import Report, RunReport
from toc_cli.report.checks import Outcome
from toc_cli.report.verdict import Alarm, failing, reading
from toc_cli.report.words import name as shown


def render(report: Report) -> str:
    """The report as JUnit XML. A check that does not count (warn level) passes and says so in its output."""
    fatal = set(map(id, failing(report.outcomes, report.fail_on)))
    root = xml.Element("testsuites", name="toc report")
    totals = {"tests": 0, "failures": 0, "skipped": 0}
    for run in report.runs:
        for subject in run.subjects:
            alarms = [alarm for alarm in run.alarms if alarm.codebook in (None, subject.codebook["id"])]
            label = f"codebook {subject.codebook['id']} {shown(subject.codebook['key'], 100)}"
            root.append(_suite(report, run, label, subject.outcomes, fatal, reading(subject.codebook), alarms))
        for number, name in dict.fromkeys((outcome.codebook, outcome.key) for outcome in run.tokens):
            own = [outcome for outcome in run.tokens if outcome.codebook == number]
            root.append(_suite(report, run, f"dataset {number} {shown(name, 100)}", own, fatal))
    for suite in root:
        for key in totals:
            totals[key] += int(suite.get(key, 0))
    root.attrib |= {key: str(value) for key, value in totals.items()}
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=False).join(
        ['<?xml version="1.0" encoding="UTF-8"?>\n', "\n"]
    )


def _suite(
    report: Report,
    run: RunReport,
    about: str,
    outcomes: Sequence[Outcome],
    fatal: set[int],
    known: str = "",
    alarms: Sequence[Alarm] = (),
) -> xml.Element:
    label = f"{shown(run.run.name, 100)}: {about}"
    suite = xml.Element(
        "testsuite",
        name=label,
        tests=str(len(outcomes)),
        failures=str(sum(id(outcome) in fatal for outcome in outcomes)),
        errors="0",
        skipped=str(sum(outcome.status == "skipped" for outcome in outcomes)),
    )
    properties = xml.SubElement(suite, "properties")
    xml.SubElement(properties, "property", name="bounds", value=report.bounds)
    for line in report.comparisons:
        xml.SubElement(properties, "property", name="baseline", value=line)
    if known:
        xml.SubElement(properties, "property", name="reading", value=known)
    for outcome in outcomes:
        case = xml.SubElement(suite, "testcase", classname=label, name=shown(outcome.check.expression, 200))
        if id(outcome) in fatal:
            xml.SubElement(case, "failure", type=outcome.check.level, message=outcome.sentence())
        elif outcome.status == "skipped":
            xml.SubElement(case, "skipped", message=outcome.reason)
        else:
            prefix = "warning: " if outcome.status == "failed" else ""
            xml.SubElement(case, "system-out").text = prefix + outcome.sentence()
    if alarms:
        xml.SubElement(suite, "system-out").text = "\n".join(
            f"warning: {run.where(alarm)}: {shown(alarm.text, 1000)}" for alarm in alarms
        )
    return suite
