"""`toc explain`: whatever a report or an option names is explained, and the checks it offers can be written as they stand."""

from __future__ import annotations

import json

import pytest

from cli import toc
from toc_cli.ops.criterion import CRITERIA
from toc_cli.report import checks, verdict
from toc_cli.report.glossary import WARNINGS, WORRY, entries
from toc_cli.report.metrics import METRICS, describe


def test_everything_that_can_be_named_is_explained() -> None:
    listed = {(entry["kind"], entry["name"]) for entry in json.loads(toc("explain", "--json").out)}
    assert {("metric", name) for name in METRICS} | {("criterion", name) for name in CRITERIA} <= listed
    assert {("verdict", kind) for kind in ("ship", "weigh", "stop", "never")} <= listed
    assert set(WORRY) <= set(METRICS)


def test_every_warning_of_the_verdict_is_explained() -> None:
    import inspect
    import re

    raised = set(re.findall(r'Alarm\(\s*"(\w+)"', inspect.getsource(verdict)))
    assert len(raised) > 5
    assert raised <= set(WARNINGS)


@pytest.mark.parametrize("entry", [e for e in entries() if e.check], ids=lambda e: f"{e.kind}-{e.name}")
def test_offered_checks_parse_and_name_a_metric(entry) -> None:  # type: ignore[no-untyped-def]
    assert describe(checks.parse(entry.check).metric)


def test_a_name_is_found_however_it_is_spelt() -> None:
    for spelt in ("excess-distortion", "Excess_Distortion", "audio.excess_distortion"):
        assert "relative change" in toc("explain", spelt).out
    done = toc("explain", "excess_distorsion")
    assert (done.code, "excess_distortion" in done.err) == (2, True)
