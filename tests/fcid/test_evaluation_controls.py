"""A criterion that random dimensions beat is named, with the figures."""

from __future__ import annotations

from typing import Any

from toc_cli.fcid.evaluation.controls import beaten_by_random
from toc_cli.fcid.evaluation.forms import Variant

VARIANTS = [
    Variant("full", "full", []),
    Variant("toc 0.5 slice", "slice", [], "toc", "0.5"),
    Variant("worst toc 0.5 slice", "slice", [], "toc", "0.5", "worst"),
    Variant("xcov 0.5 slice", "slice", [], "xcov", "0.5"),
    Variant("random 0.5 slice", "slice", [], None, "0.5", "random"),
    Variant("artefact slice", "slice", [], "artefact"),
]


def row(task: str, a: str | None, *values: float) -> dict[str, Any]:
    results = {variant.id: {"value": value} for variant, value in zip(VARIANTS, values, strict=True)}
    return {"task": task, "test": "test", "from": a, "results": results}


def test_only_means_count_and_the_worst_case_is_shown() -> None:
    rows = [
        row("clip", None, 0.9, 0.7, 0.2, 0.8, 0.75, 0.1),
        row("clip", "audio", 0.9, 0.1, 0.2, 0.1, 0.75, 0.1),  # one direction alone is no verdict
        row("second", None, 0.9, 0.5, 0.2, 0.8, 0.7, 0.1),
    ]
    assert beaten_by_random(rows, VARIANTS) == [
        "toc does no better than random dimensions in 2 of 2 comparisons; at worst 0.500 against 0.700 "
        "(second on test, 0.5 slice)."
    ]
    assert beaten_by_random([row("clip", None, 0.9, 0.8, 0.2, 0.8, 0.7, 0.1)], VARIANTS) == []
