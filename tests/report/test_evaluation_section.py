"""The evaluation's section: what it says, and what it does with names and pictures that mean harm."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from toc_cli.errors import InputError
from toc_cli.report import html, machine, markdown, schema, terminal
from toc_cli.report.assembly import assemble
from toc_cli.report.evaluation import sheets, summary
from toc_cli.report.reading import Run

EVIL = "<img src=x onerror=alert(1)>[red]\x1b[31m"


def result(value: float, delta: tuple[float, float, float] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"value": value, "seeds": [value], "ci95": [value - 0.05, value + 0.05]}
    return found if delta is None else {**found, "delta": delta[0], "delta_ci95": list(delta[1:])}


def build(name: str = "audio") -> dict[str, Any]:
    """An evaluation of two variants, with `name` wherever a file could have put it."""
    variants = [("full", "full"), ("toc 0.5 slice", "slice")]
    both = {"full": result(0.8), "toc 0.5 slice": result(0.7, (-0.1, -0.14, -0.06))}
    probed = {"task": name, "kind": "clip", "classes": 3, "train": name, "val": None, "test": name, "transfer": False,
              "levels": ["fine"], "metric": "accuracy", "clips": 1200}  # fmt: skip
    ranks = {key: result(0.5) for key in ("r1", "r5", "r10", "median_rank", "map")}
    frames = base64.b64encode(np.arange(18, dtype=np.uint8).tobytes()).decode()
    pair = {"from": name, "to": "video"}
    return {
        "schema_version": 2, "tool": {"name": "toc", "version": "0"}, "inputs": [], "options": {}, "outputs": [],
        "warnings": [], "codebooks": [],
        "evaluation": {
            "source": {"name": name, "kind": "run", "profile": "corrected", "alignment": "uniform", "readout": "fine", "codebooks": {}},
            "data": name, "modalities": [name, "video"], "scoring_split": "train",
            "variants": [{"id": i, "form": f, "criterion": None, "keep": None, "control": None, "kept": {}} for i, f in variants],
            "classification": [probed | pair | {"chance": 0.4, "results": both},
                               probed | {"from": None, "to": None, "chance": None, "results": both}],
            "localisation": [], "transfer": [],
            "retrieval": [pair | {"split": name, "levels": ["fine"], "clips": 30, "vectors": "codes", "relevance": "clip",
                                  "results": {id: ranks for id, _ in variants}}],
            "generation": [pair | {"split": name, "clips": 30, "vectors": "codes", "tasks": {name: {"metric": "f1"}},
                                   "results": {id: {"error": r} for id, r in both.items()}, "references": {"own codes": {}}}],
            "pictures": [pair | {"split": name, "clip": 0, "shape": [2, 3, 3], "true": frames, "generated": frames}],
        },
    }  # fmt: skip


def test_what_the_tables_say() -> None:
    record = build()
    schema.validate(record)
    found = {sheet.title: sheet for sheet in sheets(record)}
    assert list(found) == [
        "Classification: audio", "Retrieval: audio", "Retrieval after selection: audio", "Generation: audio → video",
    ]  # fmt: skip
    sheet = found["Classification: audio"]
    assert sheet.head == ("", "audio → video", "mean of the pairs", "difference to all")
    whole, cut = sheet.rows
    assert (whole.label, str(whole.cells[0]), whole.good) == ("all dimensions", "80.0% [75.0, 85.0%]", "")
    assert (str(cut.cells[2]), cut.good) == ("−10.00 pt [−14.00, −6.000 pt]", "worse")
    # a smaller error is better
    assert found["Generation: audio → video"].rows[1].good == "better"
    assert sheets({"codebooks": []}) == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_is_a_screen(width: int) -> None:
    record = build()
    found = record["evaluation"]
    found["variants"] += [dict(found["variants"][1], id=f"criterion{n} 0.25 subspace") for n in range(60)]
    for number in range(5):
        found["classification"] += [dict(row, task=f"label_{number}") for row in found["classification"][:2]]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*summary(record), sep="\n")
    lines = console.export_text().splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= width
    assert any(line.startswith("all dimensions") and "80.0%" in line for line in lines)
    assert any(line.startswith("chance") and "40.0%" in line for line in lines)
    assert any("48 more selections" in line for line in lines)


def test_names_out_of_files_stay_plain_everywhere() -> None:
    report = assemble([Run("e.toc.json", build(EVIL))])
    page, text = html.render(report), markdown.render(report)
    assert "<img src=x" not in page + text
    assert "onerror=alert(1)&gt;" in page
    assert page.count('src="data:image/png;base64,') == 2
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal.render(report))
    shown = console.export_text(styles=True)
    assert "[red]" in shown
    assert "\x1b[31m\x1b" not in shown
    schema.validate(machine.data(report), "report")


def unknown_variant(found: dict[str, Any]) -> None:
    found["classification"][0]["results"]["other"] = result(1)


def missing_variant(found: dict[str, Any]) -> None:
    del found["retrieval"][0]["results"]["toc 0.5 slice"]


def missing_full(found: dict[str, Any]) -> None:
    del found["classification"][0]["results"]["full"]


def short_frames(found: dict[str, Any]) -> None:
    found["pictures"][0]["shape"] = [2, 3, 4]


def no_base64(found: dict[str, Any]) -> None:
    found["pictures"][0]["true"] = "!!!"


def odd_channels(found: dict[str, Any]) -> None:
    found["pictures"][0]["shape"] = [1, 3, 3, 2]


def no_profile(found: dict[str, Any]) -> None:
    del found["source"]["profile"]


@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (unknown_variant, "results of 'other'"),
        (missing_variant, "leaves out a variant"),
        (missing_full, "'full' is a required property"),
        (short_frames, "the true frames of a picture are not"),
        (no_base64, "the true frames of a picture are not"),
        (odd_channels, "the true frames of a picture are not"),
        (no_profile, "'profile' is a required property"),
    ],
)
def test_records_that_contradict_themselves(breaks: Callable[[dict[str, Any]], None], sentence: str) -> None:
    record = copy.deepcopy(build())
    breaks(record["evaluation"])
    with pytest.raises(InputError, match=sentence):
        schema.validate(record)
