"""The tables of FOLDER/results.json as markdown: `python examples/benchmark/tables.py FOLDER > examples/benchmark/RESULTS.md`;
with --short the one that stands in README. `examples/benchmark/results.json` holds the rows of RESULTS.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import ablations, profiles
from scipy import stats

Row = dict[str, Any]
REFERENCE = "corrected-2"
COLUMNS = {
    "clip": ("label_clip ave_train to ave_test", "label_clip ave_train to val"),
    "attribute": ("label_attribute ave_train to ave_test", "label_attribute ave_train to val"),
    "second": ("label_second avvp_train to avvp_test", "label_second avvp_train to avvp_val"),
    "one event to two": ("label_second ave_train to avvp_test",),
    "other writers, voices: clip": ("label_clip ave_train to other_test",),
    "other: second": ("label_second avvp_train to other_test",),
    "retrieval": ("retrieval codes",),
}
"""Column -> the figure of a row that it shows: the first that is there."""
PARTS = {
    "classification": ("clip", "attribute"),
    "localisation": ("second",),
    "transfer": ("one event to two", "other writers, voices: clip", "other: second"),
    "retrieval": ("retrieval",),
}
"""What the mean of parts is of: each part the mean of its figures."""
MEAN = "mean of parts"


def column(row: Row, name: str, variant: str = "full") -> float | None:
    """A figure of a row in percent; None where it was not measured."""
    if name == MEAN:
        parts = [[column(row, figure, variant) for figure in own] for own in PARTS.values()]
        if any(value is None for own in parts for value in own):
            return None
        return float(np.mean([np.mean([value for value in own if value is not None]) for own in parts]))
    for figure in COLUMNS[name]:
        if variant in row["figures"].get(figure, {}):
            return 100 * float(row["figures"][figure][variant])
    return None


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % of Student's t about the mean of differences (S,) of S seeds; without end for one."""
    if len(differences) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / np.sqrt(len(differences))
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def values(rows: Iterable[Row], name: str) -> str:
    """Mean over seeds, and their spread."""
    found = [value for row in rows if (value := column(row, name)) is not None]
    if not found:
        return "–"
    return f"{np.mean(found):.1f}" + (f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else "")


def difference(rows: Sequence[Row], others: Sequence[Row], name: str) -> str:
    """Of the rows to the others of the same seed: mean and interval."""
    by_seed = {row["seed"]: column(row, name) for row in others}
    found = [
        value - other
        for row in rows
        if (value := column(row, name)) is not None and (other := by_seed.get(row["seed"])) is not None
    ]
    return shown(found)


def shown(differences: Sequence[float]) -> str:
    if not differences:
        return "–"
    low, high = interval(differences)
    ends = f" [{low:+.1f}, {high:+.1f}]" if len(differences) > 1 else ""
    return f"{np.mean(differences):+.1f}{ends}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)] + [""]


def of_models(rows: Sequence[Row]) -> list[str]:
    """Every profile, and how far the corrected one is ahead of each."""
    names = [name for name in profiles() if any(row["model"] == name for row in rows)]
    shown_columns = [name for name in (*COLUMNS, MEAN) if any(column(row, name) is not None for row in rows)]
    by_model = {name: [row for row in rows if row["model"] == name] for name in names}
    lines = [[f"`{name}` ({len(own)})", *(values(own, c) for c in shown_columns)] for name, own in by_model.items()]
    text = ["Mean over seeds, in percent, ± their standard deviation; in brackets how many seeds.", ""]
    text += table(["", *shown_columns], lines)
    if REFERENCE in by_model and len(names) > 1:
        text += [
            f"What `{REFERENCE}` is ahead of each, seed by seed, with a 95 % interval over seeds (the test clips are the same):",
            "",
        ]
        lines = [
            [f"`{name}`", *(difference(by_model[REFERENCE], own, c) for c in shown_columns)]
            for name, own in by_model.items()
            if name != REFERENCE
        ]
        text += table(["", *shown_columns], lines)
    return text


def of_ablations(rows: Sequence[Row]) -> list[str]:
    """What the corrected profile loses without each part."""
    whole = [row for row in rows if row["model"] == REFERENCE]
    names = [name for name in ablations() if any(row["model"] == name for row in rows)]
    if not names or not whole:
        return []
    columns = [name for name in (*COLUMNS, MEAN) if any(column(row, name) is not None for row in rows)]
    lines = [
        [name, *(difference([row for row in rows if row["model"] == name], whole, c) for c in columns)]
        for name in names
    ]
    return [f"Each ablation against `{REFERENCE}` of the same seed, in points:", "", *table(["", *columns], lines)]


def of_pruning(rows: Sequence[Row]) -> list[str]:
    """What a selection changes against all dimensions of the same model, over seeds."""
    text: list[str] = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        variants = list(dict.fromkeys(v for row in own for f in row["figures"].values() for v in f if v != "full"))
        seeds = len({row["seed"] for row in own})
        columns = [c for c in ("clip", "attribute", "second", MEAN) if any(column(row, c) is not None for row in own)]
        lines = [[variant, *(shown(losses(own, c, variant)) for c in columns)] for variant in variants]
        text += [
            f"`{name}`, in points against all dimensions, over {seeds} seeds:",
            "",
            *table(["", *columns], lines),
        ]
    return text


def losses(rows: Sequence[Row], name: str, variant: str) -> list[float]:
    pairs = [(column(row, name, variant), column(row, name)) for row in rows]
    return [cut - full for cut, full in pairs if cut is not None and full is not None]


def of_cost(rows: Sequence[Row]) -> list[str]:
    """Seconds of training: medians over seeds of runs that were not interrupted."""
    cost: dict[str, list[float]] = {}
    for row in rows:
        if row["training"]["seconds"]:
            cost.setdefault(row["model"], []).append(1000 * row["training"]["seconds"] / row["training"]["steps"])
    lines = [[f"`{name}`", f"{np.median(found):.0f}"] for name, found in cost.items()]
    return ["Milliseconds a step, validation included, on the machine that trained:", "", *table(["", "ms"], lines)]


def document(rows: Sequence[Row]) -> str:
    text = ["# AV-Digits, measured", ""]
    text += [
        "Made by `python examples/benchmark/run.py FOLDER` (its options are in its first lines) and "
        "`python examples/benchmark/tables.py FOLDER`. Every figure is the mean of video to audio and back; "
        "the epoch is chosen on the validation split, and so are the probes'. The mean of parts is that of classification "
        "(clip, attribute), localisation (second), transfer (one event to two, other writers and voices) and retrieval (mAP of codes), "
        "each the mean of its figures (settled when four seeds were known; the columns beside it are all there are). "
        "Models that were only evaluated beside pruned forms show all dimensions of that evaluation. "
        "The test splits were read once for each row; no setting was chosen on them.",
        "",
    ]
    for group, own in grouped(rows).items():
        width, epochs, validation = group
        text += [f"## Width {width}, {epochs} epochs{', on the validation splits' if validation else ''}", ""]
        whole, cut = wholes(own), [row for row in own if row["options"]["keep"]]
        text += of_models(whole) + of_ablations(whole) + of_pruning(cut) + of_cost(whole)
    states = {row.get("code") for row in rows}
    if len(states) > 1:
        text += [f"The rows were made by {len(states)} states of the code that trains and evaluates.", ""]
    return "\n".join(text)


def wholes(rows: Sequence[Row]) -> list[Row]:
    """One row of all dimensions per model and seed: where there is none, that of an evaluation beside pruned forms."""
    found: dict[tuple[str, int], Row] = {}
    for row in sorted(rows, key=lambda row: len(row["options"]["keep"])):
        found.setdefault((row["model"], row["seed"]), row)
    return list(found.values())


def grouped(rows: Sequence[Row]) -> Mapping[tuple[int, int, bool], list[Row]]:
    found: dict[tuple[int, int, bool], list[Row]] = {}
    for row in rows:
        found.setdefault((row["width"], row["epochs"], row["validation"]), []).append(row)
    return found


SHORT = ("clip", "attribute", "second", "one event to two", "retrieval", MEAN)


def short(rows: Sequence[Row]) -> str:
    """The table of README: every profile that was read out through two codebooks (or its one), all dimensions, width 64."""
    own = wholes([row for row in rows if row["width"] == 64 and not row["validation"]])
    lines = []
    for name in ("corrected-2", "plain-2", "published-2", "uniform-1"):
        found = [row for row in own if row["model"] == name]
        if found:
            lines.append([f"`{name}`, {len(found)} seeds", *(values(found, c) for c in SHORT)])
    by_model = {name: [row for row in own if row["model"] == name] for name in (REFERENCE, "plain-2")}
    lines.append(["ahead of plain, seed by seed", *(difference(*by_model.values(), c) for c in SHORT)])
    return "\n".join(table(["", *SHORT], lines))


if __name__ == "__main__":
    results = json.loads((Path(sys.argv[1]) / "results.json").read_text())
    print(short(results) if "--short" in sys.argv else document(results), end="")
