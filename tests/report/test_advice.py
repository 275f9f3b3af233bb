"""What to do about a run: each rule of `report/advice.py`, its sentence and the command that it names."""

from __future__ import annotations

import copy
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli import make_checkpoint, make_features, toc
from report.run_records import build_record
from toc_cli.report import html, markdown, terminal
from toc_cli.report.advice import Advice, advise, rerun
from toc_cli.report.assembly import assemble
from toc_cli.report.metrics import values
from toc_cli.report.reading import Run
from toc_cli.report.rivals import rivals


def on(record: dict[str, Any]) -> Advice:
    return advise(record, {book["id"]: values(book, record) for book in record["codebooks"]})


@pytest.fixture
def lossless(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose selection costs nothing beyond its interval."""
    book = record["codebooks"][0]
    book["after"] |= {"excess_distortion": 0.001, "token_agreement": 0.999}
    book["ci95"]["after"]["excess_distortion"] = [-0.002, 0.004]
    return record


def test_lossless_selection_ships(lossless: dict[str, Any]) -> None:
    found = on(lossless)
    assert (found.kind, found.command) == ("ship", "")
    assert found.text == "Ship it: half the dimensions, 99.90% of tokens unchanged, distortion +0.10%."


def test_costly_selection_names_the_measured_one_that_costs_less(record: dict[str, Any]) -> None:
    book = record["codebooks"][0]
    book["baselines"]["pca"] |= {"excess_distortion": -0.0004}
    book["forms"] = {"pca": {"codebook": "", "masked": "no", "sliced": "", "consumer": "no"}}
    record["options"]["emit"] = ["codebook", "masked", "sliced"]
    found = on(record)
    assert found.kind == "stop"
    assert found.text.startswith("Do not ship this selection: it costs +")
    assert found.command == (
        "toc optimize model.safetensors --features feats.h5 --criterion pca --keep 12 --emit sliced"
    )
    assert (
        found.then
        == f"`{found.command}` costs −0.04% distortion and can be written as codebook or sliced for this family."
    )


def test_what_no_asked_form_can_take_is_named_but_stops_nothing(record: dict[str, Any]) -> None:
    book = record["codebooks"][0]
    book["baselines"]["pca"]["excess_distortion"] = -0.0004
    book["baselines"]["variance"]["excess_distortion"] = 1e9
    book["advantage_over_random"]["distortion"]["ci95"] = [0.1, 0.2]
    book["forms"] = {"pca": {"codebook": "", "masked": "no", "sliced": "", "consumer": "no"}}
    record["options"]["emit"] = ["masked"]
    found = on(record)
    assert (found.kind, found.command) == ("weigh", "")
    assert "nothing measured at this size that the asked forms can take clearly costs less" in found.text
    assert found.then.endswith(
        "Not as masked, but as codebook or sliced: "
        "`toc optimize model.safetensors --features feats.h5 --criterion pca --keep 12` costs −0.04% distortion."
    )


def auto(record: dict[str, Any], by: str, agreement: dict[str, float], excess: dict[str, float]) -> dict[str, Any]:
    """The record as `--criterion auto` leaves it, with what was tried on the other part of the sample."""
    book = record["codebooks"][0]
    record["options"]["criterion"] = "auto"
    book["auto"] = {
        "criterion": "agreement",
        "by": by,
        "candidates": {n: {"token_agreement": agreement[n], "excess_distortion": excess[n]} for n in agreement},
        "sizes": {},
        "split": {"seed": 0, "chosen_on": 100, "measured_on": 100, "apart": True},
    }
    for name in ("pca", "variance"):
        book["baselines"][name]["excess_distortion"] = 1e9
    book["advantage_over_random"]["distortion"]["ci95"] = [0.1, 0.2]
    return book


def test_candidates_are_rivals_on_the_part_where_they_were_tried(record: dict[str, Any]) -> None:
    tokens = {"agreement": 0.9, "softmargin": 0.8, "usage": 0.7}
    book = auto(record, "token_agreement", tokens, {"agreement": 5.0, "softmargin": 4.5, "usage": 6.0})
    cost = book["after"]["excess_distortion"]
    found = {rival.criterion: rival for rival in rivals(record, book)}
    assert "agreement" not in found
    assert found["softmargin"].excess == pytest.approx(cost - 0.5)
    assert found["usage"].excess == pytest.approx(cost + 1.0)
    assert found["softmargin"].agreement == pytest.approx(book["after"]["token_agreement"] - 0.1)
    advice = on(record)
    assert (advice.kind, "no other of the 3 criteria that `auto` tried does better" in advice.text) == ("weigh", True)
    book["auto"]["by"] = "excess_distortion"
    assert "--criterion softmargin" in on(record).command


def test_auto_is_not_advised_to_itself(record: dict[str, Any]) -> None:
    book = auto(record, "token_agreement", {"agreement": 0.9}, {"agreement": 5.0})
    book["advantage_over_random"]["distortion"]["ci95"] = [-0.1, 0.2]
    found = on(record)
    assert found.kind == "stop"
    assert found.command == (
        "toc optimize model.safetensors --features feats.h5 --criterion auto --keep auto --min-agreement 0.95"
    )
    assert "keep more dimensions" in found.then


def test_rival_within_the_interval_is_no_reason_to_stop(record: dict[str, Any]) -> None:
    book = record["codebooks"][0]
    low, _ = book["ci95"]["after"]["excess_distortion"]
    for rival in ("pca", "variance"):
        book["baselines"][rival]["excess_distortion"] = low
    book["advantage_over_random"]["distortion"]["ci95"] = [0.1, 0.2]
    found = on(record)
    assert found.kind == "weigh"
    assert "nothing measured at this size clearly costs less" in found.text
    check = shlex.split(found.then.split("`")[1])[-1]
    bound = float(check.removeprefix("excess_distortion<=").removesuffix("%")) / 100
    cost = book["after"]["excess_distortion"]
    assert cost <= bound <= 1.11 * cost  # the gate it names holds, and not by much


def test_chance_stops(record: dict[str, Any]) -> None:
    book = record["codebooks"][0]
    for rival in ("pca", "variance"):
        book["baselines"][rival]["excess_distortion"] = 1e9
    book["advantage_over_random"]["distortion"]["ci95"] = [-0.1, 0.2]
    found = on(record)
    assert (found.kind, "random dimensions do as well" in found.text) == ("stop", True)
    assert "--criterion auto" in found.command


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"before": {"snr_db": -0.1}}, "not what this codebook was trained on"),
        (
            {"before": {"snr_db": -0.1}, "evidence": "proven"},
            "the model is untrained, or these data are not of its kind",
        ),
        ({"evidence": "assumed"}, "assumed, not known"),
        ({"sample": {"evaluated": 40, "rows": 40}}, "40 features cannot vet 48 codes"),
    ],
)
def test_a_veto_comes_before_a_lossless_selection(lossless: dict[str, Any], change: dict[str, Any], says: str) -> None:
    book = lossless["codebooks"][0]
    for key, value in change.items():
        book[key] = {**book[key], **value} if isinstance(value, dict) else value
    found = on(lossless)
    assert (found.kind, says in found.text) == ("never", True)
    if change.get("evidence") == "assumed":
        lossless["options"]["assume"] = True
        assert on(lossless).kind == "ship"


def test_bound_that_was_asked_and_holds_ships(record: dict[str, Any]) -> None:
    book = record["codebooks"][0]
    book["baselines"]["pca"]["excess_distortion"] = -0.1
    record["options"] |= {"keep": "auto", "max_distortion": book["after"]["excess_distortion"] + 0.01}
    assert on(record).kind == "ship"
    record["options"]["max_distortion"] = book["after"]["excess_distortion"] - 0.01
    assert on(record).kind == "stop"


def test_the_most_cautious_codebook_speaks_for_the_run(lossless: dict[str, Any]) -> None:
    second = copy.deepcopy(lossless["codebooks"][0]) | {"id": 1}
    lossless["codebooks"].append(second)
    assert on(lossless).text == "Ship it: 2 codebooks pruned, at least 99.90% of tokens unchanged in each."
    second["before"]["snr_db"] = -3.0
    found = on(lossless)
    assert (found.kind, found.codebook) == ("never", 1)
    assert found.text.startswith("Codebook 1: Do not ship")


def test_of_several_runs_those_that_pruned_speak(record: dict[str, Any], lossless: dict[str, Any]) -> None:
    lossless = copy.deepcopy(lossless)
    nothing = copy.deepcopy(record) | {"codebooks": [], "warnings": []}
    untrusted = copy.deepcopy(lossless)
    untrusted["codebooks"][0]["before"]["snr_db"] = -3.0

    def said(*records: dict[str, Any]) -> str:
        return assemble([Run(f"{at}.toc.json", one) for at, one in enumerate(records)]).advice.text

    assert said(lossless, nothing).startswith("Ship it: half the dimensions")
    assert said(lossless, lossless, nothing).startswith("Ship all 2: ")
    assert said(nothing, lossless, untrusted).startswith("2.toc.json: Do not ship")
    assert said(nothing, nothing).startswith("0.toc.json: Nothing was pruned")


def test_every_format_says_it_first(record: dict[str, Any]) -> None:
    report = assemble([Run("model.toc.json", record)])
    found = on(record)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal.render(report))
    assert console.export_text().splitlines()[0] == found.text
    assert f'<h1 id="verdict">{found.text}</h1>' in html.render(report)
    assert "Do not ship this selection" in markdown.render(report).splitlines()[0]


@pytest.mark.parametrize("width", [80, 120])
def test_tables_keep_one_line_a_metric(width: int) -> None:
    record = build_record(levels=2, modalities=("audio", "video", "text"))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal.render(assemble([Run("model.toc.json", record)])))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith(("Token agreement", "Excess distortion"))]
    assert len(rows) == 2
    assert all("…" not in row and "[" in row and "]" in row for row in rows)


def test_the_command_of_a_record_makes_the_record_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "a model.safetensors")
    make_features(tmp_path / "feats.h5")
    arguments = [
        "--features",
        "feats.h5",
        "--criterion",
        "variance",
        "--keep",
        "3",
        "--seed",
        "7",
        "--metric",
        "euclidean",
    ]
    assert toc("optimize", "a model.safetensors", *arguments, "-q").code == 0
    first = json.loads((tmp_path / "a model.toc.json").read_text())
    assert toc(*shlex.split(rerun(first))[1:], "--force", "-q").code == 0
    again = json.loads((tmp_path / "a model.toc.json").read_text())
    assert {**first, "timing": 0} == {**again, "timing": 0}
