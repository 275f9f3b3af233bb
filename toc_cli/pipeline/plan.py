"""`toc optimize` as a function: read, count, score, choose, measure; then, when told to, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from toc_cli.errors import UsageError
from toc_cli.io.artefact import write_artefact, write_record
from toc_cli.io.atomic import sha256
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families.base import Mode
from toc_cli.io.families.emit import supported
from toc_cli.io.families.lean import left_out
from toc_cli.io.families.levels import load_hint as level_hint
from toc_cli.io.features import Features, describe, open_features
from toc_cli.io.names import printable
from toc_cli.io.publish import Publication
from toc_cli.ops.linear import Array
from toc_cli.ops.quantiser import Quantiser
from toc_cli.pipeline.artefacts import as_artefact
from toc_cli.pipeline.auto import Auto, candidates
from toc_cli.pipeline.budget import by_bytes, by_rows
from toc_cli.pipeline.census import Census
from toc_cli.pipeline.choice import Choice
from toc_cli.pipeline.codes import code_warning, recode
from toc_cli.pipeline.counting import count_usage
from toc_cli.pipeline.curve import RANDOM_SEEDS, Curve, parse_sweep
from toc_cli.pipeline.emission import edits_for, forms_of, verify_in_library, write_checkpoint
from toc_cli.pipeline.findings import modality_agreement, off_centre, probe_labels, stability_of
from toc_cli.pipeline.ignored_labels import ignored_labels
from toc_cli.pipeline.levels import cut_levels, level_warning, refuse_level_forms, refuse_levels, worth
from toc_cli.pipeline.options import AUTO, Options, Progress, silent
from toc_cli.pipeline.outcome import data_sample, outcome
from toc_cli.pipeline.outputs import Outputs
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
from toc_cli.pipeline.reading.decide import books_said, decide
from toc_cli.pipeline.reading.explained import unexplained
from toc_cli.pipeline.reading.origin import of_another_checkpoint
from toc_cli.pipeline.reading.said import Said
from toc_cli.pipeline.record import CHOSEN, BookRecord, constant_dimensions, constant_everywhere, run_record
from toc_cli.pipeline.refresh import refreshed, refuse_refresh
from toc_cli.pipeline.sample import sampled_rows
from toc_cli.pipeline.source import Fit, Source, device_of
from toc_cli.pipeline.study import Study

VERIFIED_ROWS = 2048


@dataclass
class Plan:
    """What a run found and will write: the chosen dimensions, the pruned quantisers, the record."""

    checkpoint: Checkpoint
    features: Features
    options: Options
    chosen: list[tuple[Study, Choice]]
    record: dict[str, Any]
    outputs: Outputs | None = None
    ranks: Ranks = field(default_factory=Ranks)
    decode: Callable[[Mapping[str, Path]], dict[str, Any]] | None = None
    """The record's `outcome`, from the written copies by mode; None where no output is compared."""

    @property
    def kept(self) -> list[torch.Tensor]:
        """Per codebook the kept dimensions (L or 1, H, D') int64, ascending."""
        return [choice.kept for _, choice in self.chosen]

    @property
    def scores(self) -> list[torch.Tensor]:
        """Per codebook the scores (L or 1, H, D) float64."""
        return [torch.from_numpy(choice.table("score")) for _, choice in self.chosen]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Per codebook the record's entry: before, after, intervals, baselines."""
        return self.record["codebooks"]

    @property
    def codebook(self) -> Quantiser:
        """The pruned quantiser of the first codebook, for `toc_cli.quantize`."""
        return self.chosen[0][1].form

    @property
    def load_hints(self) -> list[str]:
        """What the owner of a sliced file without a config must write in the model's constructor, per codebook."""
        if self.checkpoint.config is not None:
            return []
        hints = []
        for study, choice in self.chosen:
            book, codes = study.source.book, study.source.codes
            if book.load_hint is not None and choice.count < study.full.dim:
                hints.append(book.load_hint(choice.count))
            if codes is not None:
                hints.append(f"{codes.about['after'][0]} codes in place of {codes.about['before'][0]}")
            if study.source.whole is not None:
                hints.append(level_hint(study.source.whole.book, book.levels))
        return hints

    @property
    def searches(self) -> list[str]:
        """What `auto` chose, per codebook for which it did."""
        found = []
        for (study, choice), entry in zip(self.chosen, self.record["codebooks"], strict=True):
            if account := entry["auto"]:
                split, who = (
                    account["split"],
                    "auto" if AUTO in (self.options.criterion, self.options.keep) else "--bytes",
                )
                where = "other units" if split["apart"] else "the same units"
                found.append(
                    f"{printable(study.source.book.shown, 120)}: {who} took {account['criterion']} at {choice.count} of "
                    f"{study.full.dim} dimensions on {split['chosen_on']:,} rows; all figures are of {split['measured_on']:,} rows "
                    f"of {where}."
                )
        return found

    @property
    def token_warnings(self) -> list[str]:
        """What the written forms do to a model trained on the tokens, per codebook whose tokens change."""
        changing = [mode for mode in self.options.emit if mode in ("masked", "sliced")]
        found = []
        for (study, _), entry in zip(self.chosen, self.record["codebooks"], strict=True):
            book = study.source.book
            moved = 1 - entry["after"]["token_agreement"]
            if changing and moved > 0:
                offered = supported(self.checkpoint, book)["consumer"] == ""
                found.append(
                    f"{printable(book.shown, 120)}: {moved:.1%} of the tokens change in the {' and '.join(changing)} form: "
                    "a language model or any other model trained on the old tokens must be trained on the new ones"
                    + (" (--emit consumer keeps every token)." if offered else ".")
                )
        return found

    def size(self, mode: Mode) -> int:
        """Bytes that an emit mode will take, headers aside."""
        pairs = [(study.source, choice) for study, choice in self.chosen]
        if mode == "codebook":
            tensors = as_artefact(self.chosen, self.options, []).tensors
            return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
        changed = edits_for(self.checkpoint, pairs, mode, self.options)
        added = sum(tensor.numel() * tensor.dtype.itemsize for tensor in changed.tensors.values())
        gone = changed.without | changed.tensors.keys()
        return added + sum(info.nbytes for key, info in self.checkpoint.infos.items() if key not in gone)

    @property
    def left_out(self) -> str:
        """What `--lean` leaves out of the edited copies, in a sentence; "" without it."""
        infos = self.checkpoint.infos
        found = left_out(self.checkpoint, [study.source.book for study, _ in self.chosen]) if self.options.lean else {}
        parts = [
            f"{kind} {sum(infos[key].nbytes for key in keys):,} bytes ({len(keys):,})" for kind, keys in found.items()
        ]
        return f"--lean leaves out (tensors): {', '.join(parts) or 'nothing'}." if self.options.lean else ""

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the artefact to `path` and the record beside it. UsageError if either exists and not `force`."""
        self.outputs = Outputs(self.checkpoint.path, ("codebook",), Path(path), force)
        return self.write()

    def write(self) -> list[Path]:
        """Write, check and verify every output aside, then publish all, the record last; on any failure what stood before stands.
        Returns the files."""
        if self.outputs is None:
            raise UsageError("The plan has no outputs.", "Use plan.save(path).")
        outputs = self.outputs
        if not self.ranks.writes:
            return []
        outputs.refuse_what_stands(_inputs(self.checkpoint, self.features))
        with Publication(outputs.stem, wait=outputs.force) as publication:
            with publication.told():
                written = self._write(outputs.aside(publication.new))
            publication.publish(outputs.record, force=outputs.force)
        return [outputs.stem.parent / path.relative_to(publication.new) for path in written]

    def _larger(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The warning of a sliced copy that takes more bytes than the input."""
        written = sum(entry["bytes"] for entry in entries if entry["mode"] == "sliced")
        came = sum(path.stat().st_size for path in self.checkpoint.files)
        if written <= came:
            return None
        text = f"The sliced copy takes {written:,} bytes, more than the {came:,} of the input: what it adds outweighs what it cuts."
        return {"id": LARGER, "codebook": None, "text": text}

    def _write(self, aside: Outputs) -> list[Path]:
        chosen = [(study.source, choice) for study, choice in self.chosen]
        samples = [_sample(study) for study, _ in self.chosen]
        written, entries = [], []
        for mode in aside.checkpoints:
            target = aside.of(mode)
            files = write_checkpoint(self.checkpoint, chosen, mode, target, self.options, samples)
            written += files
            entries += [_output(mode, file, target) for file in files]
        write_artefact(aside.artefact, as_artefact(self.chosen, self.options, self.record["inputs"]))
        if (larger := self._larger(entries)) is not None:
            self.record["warnings"].append(larger)
        self.record["outputs"] = [_output("codebook", aside.artefact, aside.artefact), *entries]
        if aside.verify:
            self.record["verified"] = [
                verify_in_library(aside.of(mode), mode, id, source, choice, sample, self.options)
                for mode in aside.checkpoints
                for id, ((source, choice), sample) in enumerate(zip(chosen, samples, strict=True))
            ]
        if self.decode is not None:
            self.record["outcome"] = self.decode({mode: aside.of(mode) for mode in aside.checkpoints})
        self.checkpoint.refuse_changes()
        write_record(aside.record, self.record)
        return [*written, aside.artefact, aside.record]


LARGER = "sliced_larger"
PLAIN = "plain"


def _inputs(ckpt: Checkpoint, features: Features) -> list[Path]:
    return [ckpt.path, *ckpt.files, *features.files]


def _output(mode: str, file: Path, target: Path) -> dict[str, Any]:
    name = file.name if file == target or file.parent == target.parent else f"{target.name}/{file.name}"
    return {"mode": mode, "name": name, "bytes": file.stat().st_size, "sha256": sha256(file)}


def _sample(study: Study) -> tuple[Fit, torch.Tensor]:
    return study.fits[0], sampled_rows(study, VERIFIED_ROWS)


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
        outputs.refuse_what_stands(_inputs(ckpt, opened), writes=ranks.writes)
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
    if options.levels is not None:
        refuse_levels([study.source for study in studies], options.levels)
        modes = outputs.checkpoints if outputs is not None else ()
        refuse_level_forms(ckpt, [study.source for study in studies], options.levels, modes, lean=options.lean)
        studies = [cut_levels(ckpt, study) for study in studies]
    if options.refresh is not None:
        modes = outputs.checkpoints if outputs is not None else ()
        refuse_refresh(ckpt, [study.source for study in studies], modes)
    preflight(ckpt, studies, outputs)
    studies = [replace(study, criteria=candidates(ckpt, study)) for study in studies]
    ckpt.close()  # what it maps counts as memory; it opens again when it is written
    hashes = hash_inputs(ckpt, opened, ranks)
    if options.codes is not None:
        studies = recode(studies)
    count_usage(studies)
    counted = time.perf_counter()
    chosen, curves, accounts, budget = _choices(studies)
    if outputs is not None:
        wanted = [
            Wanted(study.source, choice.count, choice.rotation is not None, options.recuts) for study, choice in chosen
        ]
        refuse_impossible(ckpt, wanted, outputs.checkpoints)
    plain: list[Choice | None] = [None for _ in chosen]
    if options.refresh is not None:
        plain = [choice for _, choice in chosen]
        chosen = [refreshed(curve, choice) for curve, (_, choice) in zip(curves, chosen, strict=True)]
    entries = [
        {
            **_entry(ckpt, curve, choice, before),
            "forms": forms_of(ckpt, study.source, choice, study.criteria),
            "auto": account,
            **known,
        }
        for curve, (study, choice), before, account, known in zip(
            curves, chosen, plain, accounts, reading.evidence, strict=True
        )
    ]
    recoded = [(study.source, entry) for (study, _), entry in zip(chosen, entries, strict=True) if study.source.codes]
    for source, entry in recoded:
        entry["codes"] = source.codes.about if source.codes else None
    for (study, _), entry in zip(chosen, entries, strict=True):
        if study.source.refreshed is not None:
            entry["refresh"] |= study.source.refreshed.about
    inputs = inputs_of(ranks.gather(hashes.result()), opened)
    ckpt.refuse_changes()
    opened.refuse_changes()
    met = {fit.dataset.name: fit.dataset for study in studies for fit in study.fits}
    read = [describe(stream) for stream in met.values()]
    aside = [warning for study, choice in chosen for warning in off_centre(study, choice)]
    aside += [code_warning(source) for source, _ in recoded]
    aside += [level_warning(study.source) for study, _ in chosen if study.source.about_levels is not None]
    captured = of_another_checkpoint(met.values(), inputs)
    unused = ignored_labels(opened, list(met.values()))
    warnings = [*warnings_of(books), *reading.warnings, *aside, *captured, *unused, *unexplained(entries)]
    record = run_record(options, inputs, read, warnings, entries)
    if budget is not None:
        record["budget"] = budget
    record["checkpoint"] = printable(ckpt.path.name, 200)
    seconds = time.perf_counter() - started
    rows = sum(study.census.rows for study in studies)
    record["timing"] = {
        "seconds": round(seconds, 3), "counting_seconds": round(counted - started, 3),
        "rows_per_second": round(rows / max(1e-9, counted - started)), "ranks": ranks.world,
    }  # fmt: skip
    return Plan(ckpt, opened, options, chosen, record, outputs, ranks, decode)


def _choices(
    studies: Sequence[Study],
) -> tuple[list[tuple[Study, Choice]], list[Curve], list[dict[str, Any] | None], dict[str, Any] | None]:
    """Per codebook what is kept, the curve that measures it, and, where something was searched for, how it was found; then how a
    budget was spent."""
    options, dims = studies[0].options, [study.full.dim for study in studies]
    fixed, budget = [options.size(dim) for dim in dims], None
    if options.budget is not None:
        spent, budget = by_rows(studies, options.budget)
        fixed = [*spent]
    if not options.searches:
        curves = [Curve(study, part=None if options.refresh is None else 1) for study in studies]
        sizes = [size or dim for size, dim in zip(fixed, dims, strict=True)]
        named = [options.criterion for _ in studies]
        accounts: list[dict[str, Any] | None] = [None for _ in studies]
    else:
        searches = [Auto(study, options.max_memory // 2 // len(studies)) for study in studies]
        if options.bytes is not None:
            spent, budget = by_bytes(studies, [search.figures for search in searches], options.bytes)
            fixed = [*spent]
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


def _together(studies: Sequence[Study], sizes: Sequence[int]) -> list[int]:
    """The largest need among codebooks that must be cut to one size."""
    words = [study.source.book.together for study in studies]
    largest: dict[str, int] = {}
    for word, size in zip(words, sizes, strict=True):
        largest[word] = max(size, largest.get(word, 0))
    return [largest[word] if word else size for word, size in zip(words, sizes, strict=True)]


def _entry(ckpt: Checkpoint, curve: Curve, choice: Choice, plain: Choice | None = None) -> dict[str, Any]:
    """Measure the choice against the baselines, and the sweep, in one pass, and describe it; `plain` is it before `--refresh`."""
    study, options = curve.study, curve.study.options
    wanted = {CHOSEN: choice} if plain is None else {CHOSEN: choice, PLAIN: plain}
    wanted |= {f"random{k}": curve.choice("random", choice.count, options.seed + k) for k in range(RANDOM_SEEDS)}
    others = ("variance", "pca") if curve.study.affords_rotation else ("variance",)
    wanted |= {name: curve.choice(name, choice.count, options.seed) for name in others}
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
