"""Each plain word about failure appears exactly when its number says so, and a check can hold that number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from toc_cli.report import Run, assemble
from toc_cli.report.checks import parse
from toc_cli.report.metrics import describe

Change = Callable[[dict[str, Any]], Any]


def alarms(record: dict[str, Any]) -> dict[str, Any]:
    return {alarm.id: alarm for alarm in assemble([Run("r.toc.json", record)]).runs[0].alarms}


def quiet(record: dict[str, Any]) -> dict[str, Any]:
    """The same record with nothing to warn about."""
    book = record["codebooks"][0]
    book["after"] |= {"token_agreement": 1.0, "dead_codes": 0}
    book["baselines"] = {}
    book["stability"] = {**book["stability"], "jaccard_mean": 0.95}
    book["modality_agreement"] = {"jaccard": 0.95, "pairs": {}}
    return record


CASES: dict[str, tuple[Change, str, str]] = {
    "not_better_than_random": (
        lambda book: book["advantage_over_random"].update(distortion={"value": 0.01, "ci95": [-0.02, 0.04]}),
        "advantage_over_random_low",
        "is not measurably better than picking dimensions at random",
    ),
    "beaten_by_baseline": (
        lambda book: book["baselines"].update(variance={"excess_distortion": -0.9}),
        "advantage_over_variance",
        "Try --criterion variance",
    ),
    "unstable_selection": (lambda book: book["stability"].update(jaccard_mean=0.7), "stability", "unstable"),
    "small_sample": (lambda book: book["sample"].update(evaluated=47), "sample_per_code", "47 features for 48 codes"),
    "few_units": (
        lambda book: book["sample"].update(unit="clips", units=12, few_units=True),
        "sample_units",
        "rest on few units (12 clips",
    ),
    "dead_dimensions": (lambda book: book.update(dead_dimensions=2), "dead_dimensions", "toc-live"),
    "dead_codes": (lambda book: book["after"].update(dead_codes=3), "dead_codes", "3 codes of 48 are never chosen"),
    "modalities_disagree": (
        lambda book: book["modality_agreement"].update(jaccard=0.4),
        "modality_jaccard",
        "two random sets of this size by 33.3%",
    ),
    "tokens_change": (
        lambda book: book["after"].update(token_agreement=0.9),
        "token_agreement",
        "10.0% of tokens change",
    ),
}


def test_dead_dimensions_are_those_of_a_head_by_name(record: dict[str, Any]) -> None:
    quiet(record)["codebooks"][0].update(dead_dimensions=3, dead_by_head=[[0, 3, 1]])
    (alarm,) = assemble([Run("r.toc.json", record)]).runs[0].alarms
    assert "are dead in head 1: the same value in every code." in alarm.text
    assert "1 other heads have some too." in alarm.text


def test_nothing_to_warn_about(record: dict[str, Any]) -> None:
    report = assemble([Run("r.toc.json", quiet(record))])
    assert report.runs[0].alarms == ()
    assert (report.status, report.headline) == ("open", report.advice.text)


@pytest.mark.parametrize("name", CASES)
def test_each_warning(record: dict[str, Any], name: str) -> None:
    change, metric, words = CASES[name]
    change(quiet(record)["codebooks"][0])
    found = alarms(record)
    assert list(found) == [name]
    assert words in found[name].text
    assert found[name].metric == metric
    value = assemble([Run("r.toc.json", record)]).runs[0].subjects[0].values[metric]
    assert value is not None
    bound = f">={100 * value - 1}%" if describe(metric).unit == "points" else f"=={value!r}"
    passed = assemble([Run("r.toc.json", record)], [parse(f"{metric}{bound}")])
    assert (passed.status, passed.headline) == ("pass", "Ship: the check holds."), (
        "a check that holds weighs the warning"
    )
    elsewhere = assemble([Run("r.toc.json", record)], [parse("kept_dim>=1")])
    assert elsewhere.headline == "Ship with care: 1 warning to weigh."


def test_worse_than_random_says_so(record: dict[str, Any]) -> None:
    quiet(record)["codebooks"][0]["advantage_over_random"]["distortion"] = {"value": -0.01, "ci95": [-0.02, 0.04]}
    assert "is worse than picking" in alarms(record)["not_better_than_random"].text


def test_one_lucky_random_set_is_warned_of(record: dict[str, Any]) -> None:
    """A positive mean advantage says little where a single random set of this size does as well."""
    book = quiet(record)["codebooks"][0]
    assert "not_better_than_random" not in alarms(record)
    high = book["ci95"]["after"]["excess_distortion"][1]
    book["baselines"]["random"] = {
        "excess_distortion": {"mean": high + 1, "min": high + 1e-6, "max": high + 2, "seeds": 5}
    }
    assert "not_better_than_random" not in alarms(record)
    book["baselines"]["random"]["excess_distortion"]["min"] = high - 1e-6
    assert "not_better_than_random" in alarms(record)


def test_the_pipelines_own_warnings_come_first_and_only_once(record: dict[str, Any]) -> None:
    quiet(record)["codebooks"][0]["dead_dimensions"] = 2
    record["warnings"] = [
        {"id": "constant_dimensions", "codebook": None, "text": "Two are constant."},
        {"id": "dead_dimensions", "codebook": 0, "text": "Said already."},
    ]
    found = assemble([Run("r.toc.json", record)]).runs[0].alarms
    assert [alarm.text for alarm in found] == ["Two are constant.", "Said already."]


def test_keep_all_has_nothing_to_compare(record: dict[str, Any]) -> None:
    book = quiet(record)["codebooks"][0]
    book |= {"advantage_over_random": None, "stability": None, "kept_dim": 24, "kept": [[list(range(24))]]}
    book["modality_agreement"] = {"jaccard": 1.0, "pairs": {}}
    assert alarms(record) == {}


def test_nothing_costs_less_than_keeping_all(record: dict[str, Any]) -> None:
    """A rotation of every dimension rounds below 0: no reason to try it."""
    book = quiet(record)["codebooks"][0]
    book.update(kept_dim=book["dim"])
    book["baselines"] = {"pca": {"excess_distortion": -1e-7}}
    book["ci95"]["after"]["excess_distortion"] = [0.0, 0.0]
    assert not alarms(record)


def test_the_name_of_a_codebook_is_said_once(record: dict[str, Any]) -> None:
    key = quiet(record)["codebooks"][0]["key"]
    record["warnings"] = [{"id": "off_centre", "codebook": 0, "text": f"{key}: the codes lie far from 0."}]
    report = assemble([Run("r.toc.json", record)])
    (alarm,) = report.runs[0].alarms
    assert (alarm.text, report.runs[0].where(alarm).endswith(key)) == ("The codes lie far from 0.", True)
