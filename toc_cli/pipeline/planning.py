"""`toc optimize` as a function: read, count, score, choose, measure. What it finds is a `Plan`, which writes when told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Mode
from toc_cli.io.features import Features, describe, open_features
from toc_cli.io.names import printable
from toc_cli.ops.linear import Array
from toc_cli.ops.selection import Size, most
from toc_cli.pipeline.auto import Auto, candidates
from toc_cli.pipeline.budget import by_bytes, by_rows
from toc_cli.pipeline.census import Census
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.codes import code_warning, recode
from toc_cli.pipeline.counting import count_usage
from toc_cli.pipeline.curve import RANDOM_SEEDS, Curve, parse_sweep
from toc_cli.pipeline.emission import forms_of, tied
from toc_cli.pipeline.findings import modality_agreement, off_centre, probe_labels, stability_of
from toc_cli.pipeline.ignored_labels import ignored_labels
from toc_cli.pipeline.levels import cut_levels, level_warning, refuse_level_forms, refuse_levels, worth
from toc_cli.pipeline.options import Options, Progress, silent
from toc_cli.pipeline.outcome import data_sample, outcome
from toc_cli.pipeline.outputs import Outputs
from toc_cli.pipeline.plan import Plan, inputs_read
from toc_cli.pipeline.preflight import (
    Wanted,
    preflight,
    refuse_impossible,
    refuse_itself,
    refuse_options,
    refuse_swapped,
)
from toc_cli.pipeline.provenance import hash_inputs, inputs_of
from toc_cli.pipeline.ranks import Ranks, from_environment
from toc_cli.pipeline.reading.decide import Reading, books_said, decide
from toc_cli.pipeline.reading.explained import unexplained
from toc_cli.pipeline.reading.origin import of_another_checkpoint
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.record import CHOSEN, BookRecord, constant_dimensions, constant_everywhere, run_record
from toc_cli.pipeline.refresh import refreshed, refuse_refresh
from toc_cli.pipeline.source import Source, device_of
from toc_cli.pipeline.study import Study
from toc_cli.pipeline.vocabulary import Vocabulary, open_vocabulary, vocab_warnings

PLAIN = "plain"


@dataclass(frozen=True)
class _Ready:
    """What is read and refused before the first feature row."""

    ckpt: Checkpoint
    features: Features
    options: Options
    outputs: Outputs | None
    reading: Reading
    studies: list[Study]
    vocabulary: Vocabulary | None
    decode: Callable[..., dict[str, Any]] | None
    """Measures the outputs of the written copies, where `--data` is given."""
    ranks: Ranks

    @property
    def forms(self) -> Sequence[Mode]:
        """The edited copies that are asked for."""
        return () if self.outputs is None else self.outputs.checkpoints


def plan_optimization(
    checkpoint: str | Path | Checkpoint,
    features: str | Path | Array | Mapping[str, Array] | Sequence[str | Path] | Features,
    options: Options = Options(),
    outputs: Outputs | None = None,
    *,
    progress: Progress = silent,
) -> Plan:
    """Everything of `toc optimize` but the writing. What can be refused without a feature row is, before the first is read."""
    started = time.perf_counter()
    ready = _ready(checkpoint, features, options, outputs, progress)
    ckpt, studies, options = ready.ckpt, ready.studies, ready.options
    ckpt.close()  # what it maps counts as memory; it opens again when it is written
    hashes = hash_inputs(ckpt, ready.features, ready.ranks)
    if options.codes is not None:
        studies = recode(studies)
    count_usage(studies)
    counted = time.perf_counter()
    chosen, curves, accounts, budget = _choices(studies)
    wanted = [
        Wanted(study.source, choice.size, choice.rotation is not None, options.recuts) for study, choice in chosen
    ]
    refuse_impossible(ckpt, wanted, ready.forms)
    plain: list[Choice | None] = [None for _ in chosen]
    if options.refresh is not None:
        plain = [choice for _, choice in chosen]
        chosen = [refreshed(curve, choice) for curve, (_, choice) in zip(curves, chosen, strict=True)]
    entries = [
        _entry(ckpt, curve, choice, before)
        | {"forms": forms_of(ckpt, study.source, choice, study.criteria), "auto": account}
        | known
        for curve, (study, choice), before, account, known in zip(
            curves, chosen, plain, accounts, ready.reading.evidence, strict=True
        )
    ]
    record = _record(ready, chosen, entries, inputs_of(ready.ranks.gather(hashes.result()), ready.features))
    if budget is not None:
        record["budget"] = budget
    seconds = time.perf_counter() - started
    rows = sum(study.census.rows for study in studies)
    record["timing"] = {
        "seconds": round(seconds, 3), "counting_seconds": round(counted - started, 3),
        "rows_per_second": round(rows / max(1e-9, counted - started)), "ranks": ready.ranks.world,
    }  # fmt: skip
    return Plan(ckpt, ready.features, options, chosen, record, outputs, ready.ranks, ready.decode, ready.vocabulary)


def _ready(
    checkpoint: str | Path | Checkpoint,
    features: str | Path | Array | Mapping[str, Array] | Sequence[str | Path] | Features,
    options: Options,
    outputs: Outputs | None,
    progress: Progress,
) -> _Ready:
    """Open and read what is given, and refuse what can be refused."""
    ranks = from_environment()
    ckpt = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    said = Said(options.reading, options.space, options.channel_axis)
    found = books_said(ckpt, said)
    for source in found or ():
        refuse_options(source, options)
    opened = features if isinstance(features, Features) else open_features(
        features, modalities=options.modalities, channel_axis=options.channel_axis, max_memory=options.max_memory,
        limit=options.limit,
    )  # fmt: skip
    refuse_itself(ckpt, opened)
    refuse_swapped(ckpt, found or (), opened)
    if outputs is not None:
        outputs.refuse_what_stands(inputs_read(ckpt, opened), writes=ranks.writes)
    decode = None
    if outputs is not None and outputs.data:
        data = data_sample(ckpt.path, outputs)
        decode = partial(outcome, ckpt.path, data=data, seed=options.seed, progress=progress)
    device = device_of(options.device)
    reading = decide(ckpt, opened, said, found)
    options = replace(options, stack=reading.said.get("stack"))
    for source in () if found else reading.books:
        refuse_options(source, options)
    books = [replace(source, full=source.full.to(device)) for source in reading.books]
    studies = [
        Study(source, Census(met), opened, options, ranks, progress)
        for source, met in zip(books, reading.fits, strict=True)
    ]
    ready = _Ready(ckpt, opened, options, outputs, reading, studies, None, decode, ranks)
    if options.levels is not None:
        refuse_levels(books, options.levels)
        refuse_level_forms(ckpt, books, options.levels, ready.forms, lean=options.lean)
        studies = [cut_levels(ckpt, study) for study in studies]
    if options.refresh is not None:
        refuse_refresh(ckpt, [study.source for study in studies], ready.forms)
    preflight(ckpt, studies, outputs)
    vocabulary = None
    if outputs is not None and outputs.vocab:
        vocabulary = open_vocabulary(ckpt, [study.source for study in studies], outputs.vocab)
    studies = [replace(study, criteria=candidates(ckpt, study)) for study in studies]
    return replace(ready, studies=studies, vocabulary=vocabulary)


def _record(
    ready: _Ready,
    chosen: Sequence[tuple[Study, Choice]],
    entries: Sequence[dict[str, Any]],
    inputs: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The run record of what was chosen and measured, with every warning. InputError for a file that changed meanwhile."""
    ckpt, opened = ready.ckpt, ready.features
    ckpt.refuse_changes()
    opened.refuse_changes()
    sources = [study.source for study, _ in chosen]
    for source, entry in zip(sources, entries, strict=True):
        if source.codes is not None:
            entry["codes"] = source.codes.about
        if source.refreshed is not None:
            entry["refresh"] |= source.refreshed.about
    met = {fit.dataset.name: fit.dataset for study, _ in chosen for fit in study.fits}
    warnings = [
        *warnings_of(ready.reading.books),
        *ready.reading.warnings,
        *(warning for study, choice in chosen for warning in off_centre(study, choice)),
        *(code_warning(source) for source in sources if source.codes is not None),
        *(level_warning(source) for source in sources if source.about_levels is not None),
        *(warning for source in sources if {"masked", "sliced"} & {*ready.forms} for warning in tied(ckpt, source)),
        *of_another_checkpoint(met.values(), inputs),
        *ignored_labels(opened, list(met.values())),
        *unexplained(entries),
    ]
    if ready.vocabulary is not None:
        warnings += vocab_warnings(ready.vocabulary, sources[0])
    record = run_record(ready.options, inputs, [describe(stream) for stream in met.values()], warnings, entries)
    record["checkpoint"] = printable(ckpt.path.name, 200)
    if ready.vocabulary is not None:
        record["vocab"] = ready.vocabulary.about(sources[0])
    return record


def _choices(
    studies: Sequence[Study],
) -> tuple[list[tuple[Study, Choice]], list[Curve], list[dict[str, Any] | None], dict[str, Any] | None]:
    """Per codebook what is kept, the curve that measures it, and, where something was searched for, how it was found; then how a
    budget was spent."""
    options, dims = studies[0].options, [study.full.dim for study in studies]
    fixed: list[Size | None] = [options.size(study.full.dim, len(study.full.levels)) for study in studies]
    budget: dict[str, Any] | None = None
    if options.budget is not None:
        spent, budget = by_rows(studies, options.budget)
        fixed = [*spent]
    if not options.searches:
        curves = [Curve(study, part=None if options.refresh is None else 1) for study in studies]
        sizes: list[Size] = [size or dim for size, dim in zip(fixed, dims, strict=True)]
        named = [options.criterion for _ in studies]
        accounts: list[dict[str, Any] | None] = [None for _ in studies]
    else:
        searches = [Auto(study, options.max_memory // 2 // len(studies)) for study in studies]
        if options.bytes is not None:
            split, budget = by_bytes(studies, searches, options.bytes)
            fixed = [*split]
        sizes = [size or search.smallest() for size, search in zip(fixed, searches, strict=True)]
        if budget is None:
            sizes = _together(studies, sizes)
        named = [search.best(size) for search, size in zip(searches, sizes, strict=True)]
        curves = [search.decided(size) for search, size in zip(searches, sizes, strict=True)]
        accounts = [
            search.account(size, sum(sample.rows for sample in search.proof.samples))
            for search, size in zip(searches, sizes, strict=True)
        ]
    chosen = [
        (curve.study, curve.choice(name, size, options.seed))
        for curve, name, size in zip(curves, named, sizes, strict=True)
    ]
    return chosen, curves, accounts, budget


def _together(studies: Sequence[Study], sizes: Sequence[Size]) -> list[Size]:
    """The largest need among codebooks that must be cut to one size."""
    words = [study.source.book.together for study in studies]
    largest: dict[str, Size] = {}
    for word, size in zip(words, sizes, strict=True):
        largest[word] = max(size, largest.get(word, size), key=most)
    return [largest[word] if word else size for word, size in zip(words, sizes, strict=True)]


def _entry(ckpt: Checkpoint, curve: Curve, choice: Choice, plain: Choice | None = None) -> dict[str, Any]:
    """Measure the choice against the baselines, and the sweep, in one pass, and describe it; `plain` is it before `--refresh`."""
    study, options = curve.study, curve.study.options
    wanted = {CHOSEN: choice} if plain is None else {CHOSEN: choice, PLAIN: plain}
    wanted |= {f"random{k}": curve.choice("random", choice.size, options.seed + k) for k in range(RANDOM_SEEDS)}
    others = ("variance", "pca") if curve.study.affords_rotation else ("variance",)
    wanted |= {name: curve.choice(name, choice.size, options.seed) for name in others}
    counts = parse_sweep(options.sweep, study.full.dim) if options.sweep else []
    points = curve.swept(counts)
    runs = curve.measure(wanted | curve.choices(points), keep=("full", CHOSEN))
    more = {} if plain is None else {"refresh": {"before": curve.of(runs, PLAIN), "after": curve.of(runs, CHOSEN)}}
    levels = study.source.about_levels
    if levels is None and study.full.residual:
        levels = worth(ckpt, study, list(runs.values()), len(study.full.levels))
    return BookRecord(study, choice, runs).build(
        **({} if levels is None else {"levels_cut": dict(levels)}),
        **more,
        sweep=curve.sweep(counts, curve.pooled(runs, points)) if options.sweep else None,
        stability=stability_of(study, choice),
        modality_agreement=modality_agreement(study, choice.count),
        probe=probe_labels(study, choice, runs),
    )


def warnings_of(books: Sequence[Source]) -> list[dict[str, Any]]:
    """What a user should know of the inputs before trusting the figures."""
    found = []

    def warn(id: str, source: Source, text: str) -> None:
        found.append({"id": id, "codebook": source.id, "text": text})

    for source in books:
        label = printable(source.book.shown, 120)
        for text in source.book.warnings:
            warn("family", source, f"{label}: {text}")
        for where, same in _constant_places(source):
            shown = ", ".join(map(str, same[:8])) + (" …" if len(same) > 8 else "")
            warn(
                "constant_dimensions",
                source,
                f"{label}: {len(same)} of {source.full.dim} dimensions tell no codes apart, constant over all of them{where} "
                f"({shown}).",
            )
        zero = sum(int((level.codes == 0).all(-1).sum()) for level in source.full.levels)
        codes = sum(level.codes.shape[0] * level.codes.shape[1] for level in source.full.levels)
        if zero:
            warn("zero_codes", source, f"{label}: all zero as never used codes are: {zero} of {codes}.")
    return found


def _constant_places(source: Source) -> list[tuple[str, list[int]]]:
    """Constant dimensions with where they are: everywhere, or the level and head by name."""
    found, everywhere = constant_dimensions(source), constant_everywhere(source)
    own = {place: [d for d in dims if d not in everywhere] for place, dims in found.items()}
    named = [(f" in level {level}, head {head}", dims) for (level, head), dims in own.items() if dims]
    return [("", everywhere)] * bool(everywhere) + named
