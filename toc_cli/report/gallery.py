"""Which pictures a codebook gets, in what order, with the words that belong to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from toc_cli.report import pictures
from toc_cli.report.assembly import Subject
from toc_cli.report.metrics import METRICS
from toc_cli.report.words import kept_of, number, plural
from toc_cli.report.words import name as shown

MOST_ROWS = 24
"""Things (levels, modalities, pairs) that one picture shows."""


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    colour: str
    shape: str = ""


@dataclass(frozen=True)
class Picture:
    """An inline SVG with its title, legend and caption."""

    title: str
    svg: str
    caption: str = ""
    legend: tuple[Key, ...] = ()
    square: bool = False
    ramp: bool = False


@dataclass(frozen=True)
class Group:
    """Pictures under one heading."""

    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    kind: str = ""


BEFORE_AFTER = (Key("before", "before"), Key("after", "after"))
KEPT_DROPPED = (Key("kept", "after"), Key("dropped", "dropped"))


def groups(subject: Subject, options: dict[str, Any]) -> list[Group]:
    """Everything drawn of one codebook, in order; groups without a picture are left out."""
    book = subject.codebook
    figures = book.get("figures", [])
    first = ""
    if len(figures) > 1:
        first = f"Level {figures[0]['level']}, head {figures[0]['head']}; the others stand below."
    found = [
        Group("Better than chance?", "", _baselines(book, str(options.get("criterion"))), "wide"),
        Group("The codebook in pictures", first, _main(book, options)),
        *(_each(figures) if len(figures) > 1 else []),
        Group("Levels", "Each level by itself, on the same features.", _levels(book)),
        Group("Modalities", "Each modality by itself, on the same kept dimensions.", _modalities(book)),
        Group("Across modalities", _overlap(book), _pairs(book)),
    ]
    return [group for group in found if group.pictures]


def _main(book: dict[str, Any], options: dict[str, Any]) -> list[Picture]:
    figures = book.get("figures", [])
    found = [_usage(figures[0])] if figures else []
    found += _scores(book, options)
    if figures:
        found += [
            _spectrum(figures[0], book),
            *(_heat(figures[0], side, small=len(figures) > 2) for side in ("before", "after")),
        ]
    if book.get("sweep"):
        found += _sweeps(book, str(options.get("criterion")))
    if figures:
        found.append(_map(figures[0]))
    return found


def _baselines(book: dict[str, Any], chosen: str) -> list[Picture]:
    """Chosen, random, variance and PCA side by side, where the record has any baseline."""
    found = []
    for metric in ("token_agreement", "excess_distortion"):
        value = book["after"].get(metric)
        rows = [] if value is None else [(shown(chosen, 14), value, book["ci95"]["after"].get(metric), "after")]
        random = book["baselines"].get("random", {}).get(metric)
        if random and random["mean"] is not None:
            rows.append(("random", random["mean"], [random["min"], random["max"]], "random"))
        for other in ("variance", "pca"):
            known = book["baselines"].get(other, {}).get(metric)
            if known is not None:
                rows.append((other, known, None, other))
        if len(rows) > 1:
            seeds = f"; of random, the range over {random['seeds']} seeds" if random else ""
            sample = plural(book["sample"]["evaluated"], "feature")
            caption = f"At {kept_of(book)} dimensions, n = {sample}. Bars: 95% interval{seeds}."
            better = METRICS[metric].better
            title = f"{METRICS[metric].label}: {better} is better"
            found.append(Picture(title, pictures.intervals(rows, metric), caption))
    return found


def _usage(figure: dict[str, Any], *, small: bool = False) -> Picture:
    data = figure["rank_frequency"]
    used = [(side, data[f"used_{side}"]) for side in ("before", "after") if data[f"used_{side}"] is not None]
    dead = ", ".join(f"{data['codes'] - count:,} {side}" for side, count in used)
    caption = f"Dead codes: {dead}, of {data['codes']:,}"
    caption += (
        ". A dashed line marks where the used codes end." if any(data["codes"] > count for _, count in used) else "."
    )
    svg = pictures.rank_frequency(figure, small=small)
    return Picture("How often codes are used", svg, caption, () if small else BEFORE_AFTER)


def _scores(book: dict[str, Any], options: dict[str, Any]) -> list[Picture]:
    kept = len(book["kept"][0][0])
    noun = "components" if book["rotation"] else "dimensions"
    caption = f"{kept:,} of {len(book['score'][0][0]):,} {noun} kept."
    if len(book["score"][0][0]) > pictures.BARS:
        caption += f" Each of the {pictures.BARS} bars is the mean of neighbouring ranks."
    found = [Picture("Score of each dimension", pictures.scores(book), caption, KEPT_DROPPED)]
    if not book["rotation"] and "similarity" in book and "variance" in book:
        caption = "A dimension per dot. Variance tells codes apart; similarity is what all codes have in common."
        if options.get("criterion") == "toc":
            caption += " The paper's score weighs one against the other; the dashed line is the cut."
        drawn = pictures.similarity_variance(book, options)
        found.append(Picture("Why: variance against similarity", drawn, caption, KEPT_DROPPED))
    return found


def _spectrum(figure: dict[str, Any], book: dict[str, Any], *, small: bool = False) -> Picture:
    data = figure["spectrum"]
    caption = _sample(data["codes"], data["of"])
    if not small:
        ranks = [number(book[side].get("effective_rank"), "number") for side in ("before", "after")]
        caption = (
            f"Effective rank {ranks[0]} before, {ranks[1]} after: the directions that the codes really span. {caption}"
        )
    return Picture("Spectrum", pictures.spectrum(figure, small=small), caption, () if small else BEFORE_AFTER)


def _heat(figure: dict[str, Any], side: str, *, small: bool = False) -> Picture:
    data = figure["cosine"]
    caption = "Codes in the order of clustering them before pruning; less colour means less redundancy. "
    caption += _sample(data["codes"], data["of"])
    svg = pictures.heat(figure, side, small=small)
    return Picture(f"Cosine between codes, {side}", svg, caption, square=True, ramp=True)


def _sweeps(book: dict[str, Any], chosen: str) -> list[Picture]:
    criteria = book["sweep"]["criteria"]
    others = sorted(set(criteria) - {chosen, "random", "variance", "pca"})
    names = [chosen, *(name for name in ("random", "variance", "pca") if name in criteria and name != chosen), *others]
    legend = tuple(
        Key(shown(name, 24), pictures.series_colour(name, chosen, others)) for name in names if name in criteria
    )
    sample = plural(book["sample"]["evaluated"], "feature")
    caption = f"Dashed upright: this run, {kept_of(book)}. n = {sample}."
    return [
        Picture(f"{METRICS[metric].label} by size", pictures.sweep(book, metric, chosen), caption, legend)
        for metric in ("token_agreement", "excess_distortion")
        if any(value is not None for curves in criteria.values() for value in curves.get(metric, ()))
    ]


def _map(figure: dict[str, Any]) -> Picture:
    data = figure["pca_map"]
    caption = f"Codes on their two leading principal axes before pruning, sized by usage. {_sample(data['codes'], data['of'])}"
    legend = (Key("used", "after"), Key("never chosen", "random", "hollow")) if 0 in data["usage"] else ()
    return Picture("Map of the codes", pictures.pca_map(figure), caption, legend)


def _each(figures: list[dict[str, Any]]) -> list[Group]:
    """Small multiples: usage, spectrum and cosine after of every level and head in the record, a row of each."""
    heads = any(figure["head"] for figure in figures)
    rows: tuple[tuple[str, str, Callable[[dict[str, Any]], Picture]], ...] = (
        ("Usage", "Times chosen by rank, before and after.", lambda figure: _usage(figure, small=True)),
        ("Spectrum", "Singular values, before and after.", lambda figure: _spectrum(figure, {}, small=True)),
        ("Cosine after pruning", "", lambda figure: _heat(figure, "after", small=True)),
    )
    found = []
    for title, text, draw in rows:
        drawn = [
            replace(
                draw(figure),
                title=f"Level {figure['level']}" + (f", head {figure['head']}" if heads else ""),
                ramp=False,
            )
            for figure in figures
        ]
        if title.startswith("Cosine"):
            drawn = [replace(picture, caption="") for picture in drawn]
        found.append(Group(f"{title} by level{' and head' if heads else ''}", text, drawn, "small-multiples"))
    return found


def _levels(book: dict[str, Any]) -> list[Picture]:
    rows = [(f"level {level['level']}", level) for level in book.get("per_level", ())]
    names = ("token_agreement", "excess_distortion", "snr_db", "used_codes", "perplexity")
    return _small_multiples(rows, names)


def _modalities(book: dict[str, Any]) -> list[Picture]:
    rows = list(book.get("per_modality", {}).items())
    names = ("token_agreement", "excess_distortion", "snr_db", "used_codes", "perplexity")
    return _small_multiples(rows, names)


def _pairs(book: dict[str, Any]) -> list[Picture]:
    pairs = [(pair.replace("|", " · "), sides) for pair, sides in book.get("cross_modal", {}).items()]
    found = _small_multiples(pairs, ("code_agreement", "js_bits"))
    probe = book.get("probe")
    if probe:
        directions = [
            (
                direction,
                {
                    side: {"probe_accuracy": probe[side].get(direction, {}).get("accuracy")}
                    for side in ("before", "after")
                },
            )
            for direction in probe["after"]
        ]
        found += _small_multiples(directions, ("probe_accuracy",))
    return found


def _overlap(book: dict[str, Any]) -> str:
    agreement = book.get("modality_agreement")
    if not agreement:
        return ""
    pairs = ", ".join(
        f"{shown(pair, 40)} {number(value, 'share')}" for pair, value in list(agreement["pairs"].items())[:MOST_ROWS]
    )
    return (
        f"What each modality alone would keep overlaps by {number(agreement['jaccard'], 'share')} (Jaccard): {pairs}."
    )


def _small_multiples(rows: Sequence[tuple[str, dict[str, Any]]], names: Sequence[str]) -> list[Picture]:
    """A picture per metric that any row has: dots before and after, or an interval where there is only after."""
    cut = f" The first {MOST_ROWS} of {len(rows)}." if len(rows) > MOST_ROWS else ""
    sample, shown_rows = _counted(rows), rows[:MOST_ROWS]
    found = []
    for metric in names:
        label = METRICS[metric].label
        if any(part["before"].get(metric) is not None for _, part in shown_rows):
            pairs = [(name, part["before"].get(metric), part["after"].get(metric)) for name, part in shown_rows]
            found.append(Picture(label, pictures.paired(pairs, metric), sample + cut, BEFORE_AFTER))
            continue
        known = [
            (name, part["after"][metric], part.get("ci95", {"after": {}})["after"].get(metric), "after")
            for name, part in shown_rows
            if part["after"].get(metric) is not None
        ]
        if known:
            bars = " Bars: 95% interval." if any(bounds for _, _, bounds, _ in known) else ""
            found.append(Picture(label, pictures.intervals(known, metric), (sample + bars + cut).strip()))
    return found


def _counted(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    counts = [part[name] for _, part in rows for name in ("rows", "paired_rows") if name in part]
    if not counts:
        return ""
    few, many = min(counts), max(counts)
    return f"n = {few:,} each." if few == many else f"n = {few:,} to {many:,}."


def _sample(codes: int, of: int) -> str:
    return plural(codes, "code") + "." if codes == of else f"{codes:,} of {of:,} codes, evenly over the usage ranks."
