"""`--codes`: the features are counted with every code, codes go or merge, and what follows meets the codes that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from toc_cli.errors import UsageError
from toc_cli.io.families.base import Mode
from toc_cli.io.families.recode import Recoding, fitting
from toc_cli.io.names import printable
from toc_cli.ops.codes import CodeCut, Merges, changed_share, cut, mapped_share, merges, parse_codes
from toc_cli.ops.metrics import stack
from toc_cli.pipeline.census import Census
from toc_cli.pipeline.counting import count_usage
from toc_cli.pipeline.curve import curve_figures
from toc_cli.pipeline.options import Options
from toc_cli.pipeline.sample import Sample, measure_forms, shift_of
from toc_cli.pipeline.source import Recoded, Source
from toc_cli.pipeline.study import Study

FORM = "recoded"


def refuse_codes(source: Source, text: str, modes: Sequence[Mode]) -> None:
    """UsageError for `--codes` that this codebook rules out."""
    if source.full.logits is not None:
        raise UsageError(
            f"--codes: the tokens of {printable(source.book.shown)} are chosen by learned logits, not by its codes.",
            "Leave --codes out.",
        )
    for level in source.full.levels:
        count = parse_codes(text, level.codes.shape[1])
        if count is not None and "sliced" in modes and fitting(source.book, count) != count:
            raise UsageError(
                f"--codes {text}: the library of {source.book.family} takes a power of two, and {count} is none.",
                f"Use --codes {fitting(source.book, count)}, or leave --emit sliced out.",
            )


def recode(studies: Sequence[Study]) -> list[Study]:
    """The studies with the codes that `--codes` leaves. Reads the features once."""
    plain = [replace(study, census=Census(study.fits), criteria=(), rankings={}) for study in studies]
    count_usage(plain)
    return [_recoded(study, counted) for study, counted in zip(studies, plain, strict=True)]


def _recoded(study: Study, counted: Study) -> Study:
    source, options = study.source, study.options
    assert options.codes is not None
    usage = counted.census.pooled
    wanted = _counts(source, options, usage)
    tables = _tables(source, usage, min(wanted))
    found = cut(tables, wanted)
    measured = _measured(study, found)
    if options.max_distortion is not None and not _within(measured, options.max_distortion):
        raise UsageError(
            f"--codes {options.codes}: the {wanted[0]:,} codes that are left of {printable(source.book.shown)} cost "
            f"{_percent(measured['excess_distortion'])} of distortion, more than --max-distortion {options.max_distortion:g}.",
            _enough(study, tables, wanted, options.max_distortion),
        )
    merged = sum(int(level.sum()) for level in found.merged)
    dropped = sum(int((level < 0).sum()) for level in found.maps)
    about = {
        "asked": options.codes,
        "before": [table.shape[1] for table in source.parts.tables],
        "after": wanted,
        "dropped": dropped,
        "merged": merged,
        "rows": counted.census.rows,
        "changed_share": changed_share(found, usage),
        **measured,
    }
    book = replace(source.book, num_codes=tuple(wanted) + source.book.num_codes[len(wanted) :])
    parts = replace(source.parts, tables=found.tables)
    cut_source = replace(
        source, book=book, parts=parts, full=_applied(source, found), codes=Recoded(source, found, about, usage)
    )
    return replace(study, source=cut_source, census=Census(study.fits), rankings={})


def recoding(source: Source) -> Recoding:
    """The cut of a source's codes as the edit of a file needs it."""
    assert source.codes is not None
    found = source.codes.cut
    return Recoding(found.maps, found.ids, source.parts.tables, source.codes.before.parts.tables)


def rewriting(source: Source) -> Recoding:
    """Codes that were estimated anew, as the edit of a file needs them: every id stays."""
    assert source.refreshed is not None
    same = [torch.arange(table.shape[1]).expand(table.shape[0], -1).contiguous() for table in source.parts.tables]
    return Recoding(same, same, source.parts.tables, source.refreshed.before.parts.tables)


def _applied(source: Source, found: CodeCut) -> Any:
    device = source.full.levels[0].codes.device
    return source.full.recoded([table.to(device) for table in found.tables])


def _counts(source: Source, options: Options, usage: Sequence[np.ndarray]) -> list[int]:
    """K' of every level: one for all levels of one K, as configs and stacked tables hold it; never below two."""
    assert options.codes is not None
    sizes = [level.codes.shape[1] for level in source.full.levels]
    asked = [parse_codes(options.codes, size) for size in sizes]
    used = [int((counts > 0).sum(-1).max()) for counts in _shared(source, usage)]
    if "sliced" in options.emit:
        used = [min(size, fitting(source.book, count)) for count, size in zip(used, sizes, strict=True)]
    counts = [
        max(min(2, size), one if one is not None else most) for one, most, size in zip(asked, used, sizes, strict=True)
    ]
    largest = {size: max(count for count, other in zip(counts, sizes, strict=True) if other == size) for size in sizes}
    return [largest[size] for size in sizes]


def _shared(source: Source, usage: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Usage (H, K_l) per level, summed over the heads and levels that read one stored table."""
    same = _groups(source)
    return [
        np.stack([np.sum([usage[at][h] for at, h in same[level, head]], axis=0) for head in range(len(table))])
        for level, table in enumerate(usage)
    ]


def _groups(source: Source) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The (level, head) that read the same codes, by each of them: one tensor, under one name or several."""
    tables = source.parts.tables
    places = [(level, head) for level in range(len(tables)) for head in range(tables[level].shape[0])]

    def same(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a == b or torch.equal(tables[a[0]][a[1]], tables[b[0]][b[1]])

    return {place: [other for other in places if same(place, other)] for place in places}


def _tables(source: Source, usage: Sequence[np.ndarray], least: int) -> list[list[Merges]]:
    unit = source.full.metric == "cosine" or source.full.unit_vectors
    made: dict[tuple[int, int], Merges] = {}
    groups = _groups(source)
    for level, counts in enumerate(_shared(source, usage)):
        for head, row in enumerate(counts):
            first = groups[level, head][0]
            made[level, head] = (
                made[first]
                if first in made
                else merges(source.parts.tables[level][head], row, unit=unit, down_to=least)
            )
    return [[made[level, head] for head in range(len(table))] for level, table in enumerate(usage)]


def _measured(study: Study, found: CodeCut) -> dict[str, Any]:
    """What the codes that are left cost against all, and how many tokens are the mapped ones."""
    form, shift = _applied(study.source, found), shift_of(study)
    runs = [measure_forms(Sample(study, fit, shift), {FORM: lambda: form}, ("full", FORM)) for fit in study.fits]
    sums = {name: stack([run.sums[name] for run in runs]) for name in ("full", FORM)}
    old, new = (torch.cat([run.tokens[name] for run in runs]).long() for name in ("full", FORM))
    excess = curve_figures(sums[FORM], sums["full"])["excess_distortion"]
    return {"evaluated": len(old), "excess_distortion": excess, "mapped_share": mapped_share(found, old, new)}


def _within(measured: dict[str, Any], bound: float) -> bool:
    excess = measured["excess_distortion"]
    return excess is not None and excess <= bound


def _percent(excess: float | None) -> str:
    return "an unknown share" if excess is None else f"{excess:.2%}"


def _enough(study: Study, tables: Sequence[Sequence[Merges]], wanted: Sequence[int], bound: float) -> str:
    """The hint: the smallest number of codes that stays within the bound, by bisection."""
    low, high = wanted[0], max(one.used for level in tables for one in level)
    if not _within(_measured(study, cut(tables, [high] * len(wanted))), bound):
        return "Raise the bound."
    while high - low > 1:
        middle = (low + high) // 2
        if _within(_measured(study, cut(tables, [middle] * len(wanted))), bound):
            high = middle
        else:
            low = middle
    return f"--codes {high} stays within it."


def code_warning(source: Source) -> dict[str, Any]:
    """The record's warning: what the owner of old tokens must know."""
    assert source.codes is not None
    about = source.codes.about
    label = printable(source.book.shown, 120)
    if about["after"] == about["before"]:
        return {
            "id": "codes",
            "codebook": source.id,
            "text": f"{label}: all {about['before'][0]:,} codes stay as they are.",
        }
    text = f"{label}: {about['after'][0]:,} of {about['before'][0]:,} codes stay, under new ids (toc remap rewrites old tokens)"
    if about["merged"]:
        text += f"; {about['changed_share']:.2%} of the tokens merge into another code's and change meaning"
    return {"id": "codes", "codebook": source.id, "text": f"{text}."}
