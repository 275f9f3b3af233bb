"""The tables of a report as rows of words: what markdown, terminal and HTML show alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from toc_cli.report.assembly import Subject
from toc_cli.report.metrics import METRICS, Metric
from toc_cli.report.words import NONE, change, interval, number

QUALITY = ("token_agreement", "excess_distortion", "distortion", "snr_db")
STATE = (
    "used_codes",
    "dead_codes",
    "perplexity",
    "entropy",
    "near_tie_rate",
    "mean_cosine",
    "min_distance",
    "effective_rank",
    "usage_rank",
    "code_agreement",
    "js_bits",
    "probe_accuracy",
    "bytes",
)
TRUST = (
    "advantage_over_random",
    "advantage_over_random_agreement",
    "advantage_over_variance",
    "advantage_over_pca",
    "stability",
    "sample_per_code",
    "sample_units",
    "dead_dimensions",
    "modality_jaccard",
)

COLUMNS = ("before", "after", "random", "variance", "pca")
"""What the cells of a row of `quality` are."""

NOTABLE = 0.01  # changes below this share of the old value are shown without judgement


@dataclass(frozen=True)
class Cell:
    """A value in words, and its interval or range in words."""

    text: str
    spread: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.spread}".rstrip()


@dataclass(frozen=True)
class Row:
    """A metric and its cells."""

    metric: Metric
    cells: tuple[Cell, ...]
    good: str = ""
    """better or worse, where the change is notable."""


def quality(subject: Subject) -> list[Row]:
    """Before, after, and other selections at the same size: random, variance, PCA."""
    book = subject.codebook
    rows = []
    for metric in _shown(QUALITY, subject):
        random = book["baselines"].get("random", {}).get(metric.name)
        cells = [_side(subject, "before", metric), _side(subject, "after", metric)]
        if random is None:
            cells.append(Cell(NONE))
        else:
            spread = interval([random["min"], random["max"]], metric.unit).replace("[", "(").replace("]", ")")
            cells.append(Cell(number(random["mean"], metric.unit), spread))
        cells += [
            Cell(number(book["baselines"].get(other, {}).get(metric.name), metric.unit))
            for other in ("variance", "pca")
        ]
        rows.append(Row(metric, tuple(cells)))
    return rows


def state(subject: Subject) -> list[Row]:
    """Before, after and the change, for the codes and their use."""
    book, rows = subject.codebook, []
    for metric in _shown(STATE, subject):
        old, new = book["before"].get(metric.name), book["after"].get(metric.name)
        moved = Cell(change(old, new, metric.unit))
        rows.append(
            Row(
                metric,
                (_side(subject, "before", metric), _side(subject, "after", metric), moved),
                _good(metric, old, new),
            )
        )
    return rows


def trust(subject: Subject) -> list[Row]:
    """How far the selection can be trusted: one value each."""
    rows = []
    advantage = subject.codebook.get("advantage_over_random") or {}
    spreads = {
        "advantage_over_random": (advantage.get("distortion") or {}).get("ci95"),
        "advantage_over_random_agreement": (advantage.get("agreement") or {}).get("ci95"),
    }
    for name in TRUST:
        if subject.values.get(name) is not None:
            metric = METRICS[name]
            rows.append(
                Row(
                    metric, (Cell(number(subject.values[name], metric.unit), interval(spreads.get(name), metric.unit)),)
                )
            )
    return rows


def compared(subject: Subject) -> list[Row]:
    """This run beside the baseline: old, new, change."""
    rows = []
    for name in (*QUALITY, *STATE, *TRUST, "kept_dim"):
        metric = METRICS[name]
        old = None if subject.baseline is None else subject.baseline.get(name)
        new = subject.values.get(name)
        if old is not None and new is not None:
            cells = (
                Cell(number(old, metric.unit)),
                Cell(number(new, metric.unit)),
                Cell(change(old, new, metric.unit)),
            )
            rows.append(Row(metric, cells, _good(metric, old, new)))
    return rows


def cell(name: str, block: Mapping[str, Any], intervals: Mapping[str, Any] | None = None) -> Cell:
    """One metric of a `before` or `after` block in words."""
    metric = METRICS[name]
    return Cell(number(block.get(name), metric.unit), interval((intervals or {}).get(name), metric.unit))


def _shown(names: Iterable[str], subject: Subject) -> list[Metric]:
    sides = subject.codebook["before"], subject.codebook["after"]
    return [METRICS[name] for name in names if any(side.get(name) is not None for side in sides)]


def _side(subject: Subject, side: str, metric: Metric) -> Cell:
    return cell(metric.name, subject.codebook[side], subject.codebook["ci95"][side])


def _good(metric: Metric, old: float | None, new: float | None) -> str:
    if old is None or new is None or not metric.better or abs(new - old) <= NOTABLE * abs(old):
        return ""
    return "better" if (new > old) == (metric.better == "higher") else "worse"
