"""`--refresh N`: the kept codes estimated anew by N Lloyd steps on the features, in the kept subspace.

The steps see every row but those on which the run is measured. Legend: L levels, H heads, K codes, D dimensions, D' kept ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from toc_cli.errors import UsageError
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import recode
from toc_cli.io.families.base import MODES, Mode
from toc_cli.io.names import printable
from toc_cli.ops.blocks import grid
from toc_cli.ops.linear import float64, matmul
from toc_cli.ops.lloyd import Gathered, gathered, stepped
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.counting import own_chunks, own_start
from toc_cli.pipeline.curve import Curve
from toc_cli.pipeline.forms import refuse_forms
from toc_cli.pipeline.source import Refreshed, Source, form_for
from toc_cli.pipeline.study import Study

Heads = list[Gathered]
"""Of one level, by head."""


def refuse_refresh(ckpt: Checkpoint, sources: Sequence[Source], modes: Sequence[Mode]) -> None:
    """UsageError for codes that are no means of what chooses them, and for a form that cannot hold new ones."""
    for source in sources:
        full, shown = source.full, printable(source.book.shown, 120)
        if full.metric != "euclidean" or full.unit_vectors or full.unit_in:
            lookup = "a lookup between unit vectors" if full.metric == "euclidean" else f"a {full.metric} lookup"
            raise UsageError(
                f"--refresh takes means, which only a Euclidean lookup approaches: {shown} has {lookup}.",
                "Leave it out.",
            )
        keys = [key for level in source.book.keys for key in dict.fromkeys(level)]
        places = [(info.storage or key) if (info := ckpt.infos.get(key)) else key for key in keys]
        if len(set(places)) < len(places) or not source.book.own_dims_per_head:
            raise UsageError(
                f"--refresh: levels or heads of {shown} share one table, and would each want other codes.",
                "Leave it out.",
            )
        reasons = {mode: recode.refusal(ckpt, source.book, mode) for mode in MODES}
        refuse_forms(source.book, reasons, modes, "--refresh")


def refreshed(curve: Curve, choice: Choice) -> tuple[Study, Choice]:
    """The study and choice with codes that `--refresh` steps estimated on the rows that the curve does not measure."""
    study, steps = curve.study, curve.study.options.refresh
    assert steps is not None
    aside = {sample.fit.dataset.name: sample.blocks for sample in curve.samples} if curve.apart else {}
    found, rows = choice, 0
    for _ in range(steps):
        for level in range(len(choice.full.levels)):  # each level sees what the new codes of the ones before leave
            means = _means(study, found, level, aside)
            rows = int(means[0].counts.sum())
            found = replace(found, full=_stepped(found, level, means), codes=b"refreshed")
    tables = tuple(
        level.codes.cpu().to(read.dtype if read.element_size() >= 2 else level.codes.dtype)
        for level, read in zip(found.full.levels, study.source.parts.tables, strict=True)
    )
    about = {"steps": steps, "rows": rows, "apart": curve.apart}
    source = replace(
        study.source,
        parts=replace(study.source.parts, tables=tables),
        refreshed=Refreshed(study.source, about),
    )
    return replace(study, source=source), found


def _means(study: Study, choice: Choice, level: int, aside: Mapping[str, list[tuple[int, int]]]) -> Heads:
    """What each kept code of a level gathers, over every modality and rank, in the order of the grid."""
    total: Heads = []
    form = choice.form
    with study.progress("refreshing codes", sum(fit.dataset.rows for fit in study.fits)) as advance:
        for fit in study.fits:
            name, stream = fit.dataset.name, fit.dataset
            own = _segments(study, form_for(form, fit), level, name, stream.rows, aside.get(name, []), advance)
            for segment in own if study.ranks.world == 1 else study.ranks.concatenate(own):
                total = segment if not total else _added(total, segment)
    return total


def _segments(
    study: Study, form: Quantiser, level: int, name: str, rows: int, aside: Sequence[tuple[int, int]], advance: Any
) -> Iterator[Heads]:
    """The sums of this rank's segments of the grid, block upon block; of one process all in one running sum of segments."""
    blocks = grid(rows)
    at = own_start(rows, study.ranks)
    current: Heads | None = None
    for x in own_chunks(study.features, name, rows, study.ranks):
        for start in range(0, len(x), blocks.block):
            block = x[start : start + blocks.block]
            state = _block(form, level, block[_seen(at, len(block), aside)])
            fresh = (at // blocks.block) % blocks.per_segment == 0
            if fresh and current is not None:
                yield current
                current = None
            current = state if current is None else _added(current, state)
            at += len(block)
        advance(len(x))
    if current is not None:
        yield current


def _seen(start: int, count: int, aside: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Which of the rows start … start + count are not in the ranges that are set aside."""
    seen = torch.ones(count, dtype=torch.bool)
    for first, end in aside:
        seen[max(0, first - start) : max(0, end - start)] = False
    return seen


def _added(one: Heads, other: Heads) -> Heads:
    return [a + b for a, b in zip(one, other, strict=True)]


def _block(form: Quantiser, level: int, x: torch.Tensor) -> Heads:
    tokens = form.tokens(x)
    own = form.levels[level]
    z = next(islice(form.inputs(x, tokens), level, None))
    found = []
    for head in range(form.heads):
        kept, compared = own.columns(head), own.compared(z, head)
        rows = compared if kept is None else compared[:, kept]
        found.append(gathered(rows, tokens[:, level, head].numpy(), own.codes.shape[1]))
    return found


def _stepped(choice: Choice, at: int, means: Heads) -> Quantiser:
    """The unpruned quantiser with new codes of one level in the kept subspace; what lies off it stays."""
    tables = [level.codes for level in choice.full.levels]
    short, heads = choice.form.levels[at], []
    for head, codes in enumerate(tables[at].cpu()):
        after = stepped(short.codes[head], means[head])
        whole = float64(codes).copy()
        if short.rotation is not None:
            turn = float64(short.rotation[head])
            whole += matmul(after - matmul(whole, turn), turn.T)
        else:
            kept = short.columns(head)
            whole[:, slice(None) if kept is None else kept.numpy()] = after
        heads.append(torch.from_numpy(whole).to(codes.dtype))
    tables[at] = torch.stack(heads).to(tables[at].device)
    return choice.full.recoded(tables)
